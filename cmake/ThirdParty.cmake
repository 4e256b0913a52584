# ggml and libllama, built once and cached outside the tree by tools/third_party.py.
#
# Defines
#   innerkv_thirdparty::llama   llama.h, ggml*.h, gguf.h; libllama and libggml
#   INNERKV_GGUF_PY             a folder for PYTHONPATH: the gguf package
# and installs the shared libraries beside an installed program.
find_program(INNERKV_PYTHON3 python3 REQUIRED)

execute_process(
  COMMAND ${INNERKV_PYTHON3} ${PROJECT_SOURCE_DIR}/tools/third_party.py
  OUTPUT_VARIABLE INNERKV_THIRDPARTY_DIR
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "tools/third_party.py says above why it failed; mend that, or build the "
    "library alone, which needs none of it: -DINNERKV_BUILD_PROGRAM=OFF")
endif()
set(INNERKV_GGUF_PY ${INNERKV_THIRDPARTY_DIR}/gguf-py)

foreach(library IN ITEMS ggml-base ggml llama)
  add_library(innerkv_thirdparty_${library} SHARED IMPORTED GLOBAL)
  set_target_properties(innerkv_thirdparty_${library} PROPERTIES
    IMPORTED_LOCATION ${INNERKV_THIRDPARTY_DIR}/lib/lib${library}.so)
endforeach()

add_library(innerkv_thirdparty INTERFACE)
add_library(innerkv_thirdparty::llama ALIAS innerkv_thirdparty)
target_link_libraries(innerkv_thirdparty INTERFACE
  innerkv_thirdparty_llama innerkv_thirdparty_ggml innerkv_thirdparty_ggml-base)
target_include_directories(innerkv_thirdparty SYSTEM INTERFACE ${INNERKV_THIRDPARTY_DIR}/include)
# The headers declare symbols for shared libraries.
target_compile_definitions(innerkv_thirdparty INTERFACE
  GGML_SHARED GGML_BACKEND_SHARED LLAMA_SHARED)

find_package(Threads REQUIRED)
target_link_libraries(innerkv_thirdparty INTERFACE Threads::Threads)

# An installed program finds the libraries in lib/innerkv; they find each other beside themselves.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}/innerkv")
install(DIRECTORY ${INNERKV_THIRDPARTY_DIR}/lib/
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/innerkv COMPONENT program USE_SOURCE_PERMISSIONS)
install(DIRECTORY ${INNERKV_THIRDPARTY_DIR}/licenses/
  DESTINATION ${CMAKE_INSTALL_DOCDIR}/licenses COMPONENT program)

# The interpreter for test scripts that write GGUF files: numpy and what gguf-py needs.
if(INNERKV_BUILD_TESTS)
  execute_process(
    COMMAND ${INNERKV_PYTHON3} ${PROJECT_SOURCE_DIR}/tools/python_environment.py
    OUTPUT_VARIABLE INNERKV_PYTHON
    OUTPUT_STRIP_TRAILING_WHITESPACE
    COMMAND_ERROR_IS_FATAL ANY)
endif()
