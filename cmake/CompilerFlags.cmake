# Flags of all targets of this project; a project that includes it keeps its own.
if(PROJECT_IS_TOP_LEVEL)
  find_program(INNERKV_CCACHE ccache)
  if(INNERKV_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${INNERKV_CCACHE})
  endif()
  if(INNERKV_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${INNERKV_CCACHE})
  endif()
  set(warnings -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual)
  if(INNERKV_WERROR)
    list(APPEND warnings -Werror)
  endif()
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${warnings};-Wpedantic>")
  # nvcc's own output is not pedantic.
  list(JOIN warnings "," cuda_warnings)
  add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${cuda_warnings}>")
endif()

# No -march anywhere here: a source file of one instruction set names its own flags, all else runs
# on every processor of the architecture.
if(INNERKV_SANITIZE)
  add_compile_options(-fsanitize=${INNERKV_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${INNERKV_SANITIZE})
  if(INNERKV_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()
