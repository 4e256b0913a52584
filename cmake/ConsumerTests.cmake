# The installed library, used from outside: by find_package and by pkg-config.
set(consumer_source ${PROJECT_SOURCE_DIR}/tests/consumer)
set(consumer_build ${PROJECT_BINARY_DIR}/tests/consumer)
set(consumer_prefix ${consumer_build}/prefix)

set(consumer_flags)
if(INNERKV_SANITIZE)
  set(consumer_flags -fsanitize=${INNERKV_SANITIZE})
endif()

add_test(NAME consumer.install
  COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${consumer_prefix}
    --component library)
set_tests_properties(consumer.install PROPERTIES FIXTURES_SETUP installed_library)

add_test(NAME consumer.find_package
  COMMAND ${CMAKE_CTEST_COMMAND}
    --build-and-test ${consumer_source} ${consumer_build}/find_package
    --build-generator ${CMAKE_GENERATOR}
    --build-options
      -DCMAKE_PREFIX_PATH=${consumer_prefix}
      -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
      -DCMAKE_CXX_FLAGS=${consumer_flags}
    --test-command consumer)

add_test(NAME consumer.pkg_config
  COMMAND ${consumer_source}/pkg_config.sh ${CMAKE_CXX_COMPILER}
    ${consumer_prefix}/${CMAKE_INSTALL_LIBDIR}/pkgconfig ${consumer_build}/pkg_config ${consumer_flags})

set_tests_properties(consumer.find_package consumer.pkg_config PROPERTIES
  FIXTURES_REQUIRED installed_library)
