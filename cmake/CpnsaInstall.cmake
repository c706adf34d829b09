# Installs the libraries, the headers and the package: find_package(cpnsa [COMPONENTS mpi cuda nccl c c_static]) and
# pkg-config cpnsa, cpnsa_<component>. Each component has an export file of its own, so that a consumer needs only the
# dependencies of what it asks for.

include(CMakePackageConfigHelpers)
set(CPNSA_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/cpnsa)

set(CPNSA_COMPONENTS cpnsa)
foreach(component IN ITEMS mpi cuda nccl c c_static)
  if(TARGET cpnsa_${component})
    list(APPEND CPNSA_COMPONENTS ${component})
  endif()
endforeach()

foreach(component IN LISTS CPNSA_COMPONENTS)
  set(target cpnsa_${component})
  if(component STREQUAL "cpnsa")
    set(target cpnsa)
  endif()
  install(TARGETS ${target} EXPORT cpnsa_${component}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(EXPORT cpnsa_${component} NAMESPACE cpnsa:: DESTINATION ${CPNSA_PACKAGE_DIR}
    FILE cpnsa-${component}-targets.cmake)
endforeach()

install(DIRECTORY include/cpnsa DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp"
  PATTERN mpi EXCLUDE PATTERN cuda EXCLUDE PATTERN nccl EXCLUDE)
foreach(component IN ITEMS mpi cuda nccl)
  if(TARGET cpnsa_${component})
    install(DIRECTORY include/cpnsa/${component} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cpnsa)
  endif()
endforeach()
if(TARGET cpnsa_c)
  install(FILES include/cpnsa/cpnsa.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cpnsa)
endif()

configure_package_config_file(cmake/cpnsaConfig.cmake.in cpnsaConfig.cmake INSTALL_DESTINATION ${CPNSA_PACKAGE_DIR})
write_basic_package_version_file(cpnsaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cpnsaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/cpnsaConfigVersion.cmake
  DESTINATION ${CPNSA_PACKAGE_DIR})
if(TARGET cpnsa_nccl)
  install(FILES cmake/FindNCCL.cmake DESTINATION ${CPNSA_PACKAGE_DIR})
endif()

# cpnsa_install_pc(name DESCRIPTION text LIBS flags [REQUIRES packages]): name.pc, good wherever the tree is moved to.
function(cpnsa_install_pc name)
  cmake_parse_arguments(PC "" "DESCRIPTION;LIBS;REQUIRES" "" ${ARGN})
  set(PC_NAME ${name})
  set(pc_dir ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  file(RELATIVE_PATH PC_PREFIX ${pc_dir} ${CMAKE_INSTALL_PREFIX})
  configure_file(cmake/cpnsa.pc.in ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

set(pc_requires cpnsa)
cpnsa_install_pc(cpnsa DESCRIPTION "Native Sparse Attention, distributed: C++20" LIBS "-lcpnsa -lm -pthread")
if(TARGET cpnsa_mpi)  # the MPI's own flags come with its compiler wrapper
  cpnsa_install_pc(cpnsa_mpi DESCRIPTION "cpnsa's MPI transport; compile with mpicxx" LIBS -lcpnsa_mpi REQUIRES cpnsa)
endif()
if(TARGET cpnsa_cuda)
  string(APPEND pc_requires " cpnsa_cuda")
  cpnsa_install_pc(cpnsa_cuda DESCRIPTION "cpnsa's CUDA device" REQUIRES cpnsa
    LIBS "-lcpnsa_cuda -L${CUDAToolkit_LIBRARY_DIR} -lcublasLt -lcudart_static -ldl -lrt")
endif()
if(TARGET cpnsa_nccl)
  string(APPEND pc_requires " cpnsa_nccl")
  cpnsa_install_pc(cpnsa_nccl DESCRIPTION "cpnsa's NCCL transport" REQUIRES "cpnsa cpnsa_cuda"
    LIBS "-lcpnsa_nccl ${NCCL_LIBRARY}")
endif()
if(TARGET cpnsa_c)
  cpnsa_install_pc(cpnsa_c DESCRIPTION "Native Sparse Attention, distributed: C11" LIBS -lcpnsa_c)
  cpnsa_install_pc(cpnsa_c_static DESCRIPTION "The same, linked statically" REQUIRES "${pc_requires}"
    LIBS "-l:libcpnsa_c.a -lstdc++ -lm")
endif()
