# The library: headers, archive, find_package and pkg-config files. Component `library`; the program
# and what it needs are component `program`.
include(CMakePackageConfigHelpers)

install(TARGETS innerkv EXPORT innerkv COMPONENT library)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/innerkv
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library FILES_MATCHING PATTERN "*.h")

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/innerkv)
install(EXPORT innerkv NAMESPACE innerkv:: FILE innerkv-targets.cmake
  DESTINATION ${package_dir} COMPONENT library)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/innerkv-config.cmake.in
  ${PROJECT_BINARY_DIR}/innerkv-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/innerkv-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/innerkv-config.cmake ${PROJECT_BINARY_DIR}/innerkv-config-version.cmake
  DESTINATION ${package_dir} COMPONENT library)

# Paths relative to the file, so that `cmake --install --prefix` and moved trees work.
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH INNERKV_PC_PREFIX /${pkgconfig_dir} /)
# The archive needs what CUDA::cudart_static stands for in CMake.
set(INNERKV_PC_CUDA_LIBS "")
if(INNERKV_CUDA)
  set(INNERKV_PC_CUDA_LIBS " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt -lpthread")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/innerkv.pc.in ${PROJECT_BINARY_DIR}/innerkv.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/innerkv.pc DESTINATION ${pkgconfig_dir} COMPONENT library)

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT library)
