# GTest::gtest_main. For another processor than this machine's it is compiled from the sources in Debian's
# package googletest.
include(GoogleTest)

# Of gtest_discover_tests: when ctest starts, not when a test is built. A busy machine or an emulator takes longer
# to list them than the usual 5 s.
set(test_discovery DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60)

if(NOT CMAKE_CROSSCOMPILING)
  find_package(GTest REQUIRED)
  return()
endif()

set(INNERKV_GOOGLETEST_SOURCE /usr/src/googletest/googletest CACHE PATH "GoogleTest's sources")
find_package(Threads REQUIRED)
add_library(gtest_main STATIC EXCLUDE_FROM_ALL
  ${INNERKV_GOOGLETEST_SOURCE}/src/gtest-all.cc
  ${INNERKV_GOOGLETEST_SOURCE}/src/gtest_main.cc)
target_include_directories(gtest_main SYSTEM
  PUBLIC ${INNERKV_GOOGLETEST_SOURCE}/include
  PRIVATE ${INNERKV_GOOGLETEST_SOURCE})
target_compile_options(gtest_main PRIVATE -w)
target_link_libraries(gtest_main PUBLIC Threads::Threads)
add_library(GTest::gtest_main ALIAS gtest_main)
