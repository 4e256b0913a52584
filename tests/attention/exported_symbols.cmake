# Fails where an object file with instruction-set flags defines a function that other objects could be
# linked to: an inline function of a shared header, compiled for one processor and run on all.
# cmake -DNM=... -DOBJECTS=a;b -P exported_symbols.cmake
set(checked 0)
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "cpu/(amx|avx2|avx512|avxvnni)/kernel")
    continue()
  endif()
  execute_process(COMMAND ${NM} --defined-only --extern-only ${object}
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  if(symbols MATCHES " [TWiu] ([^\n]*)")
    message(FATAL_ERROR "${object} defines ${CMAKE_MATCH_1} for the linker; "
      "give it internal linkage")
  endif()
  if(NOT symbols MATCHES "kKernel")
    message(FATAL_ERROR "${object} does not define its kernel table")
  endif()
  math(EXPR checked "${checked} + 1")
endforeach()
if(checked EQUAL 0)
  message(FATAL_ERROR "no kernel among the objects: ${OBJECTS}")
endif()
