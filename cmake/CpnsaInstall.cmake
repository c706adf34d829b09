# Installs the libraries, the headers and the package: find_package(cpnsa [COMPONENTS mpi cuda nccl]).
# Each component has an export file of its own, so that a consumer needs only the dependencies of what it asks for.

include(CMakePackageConfigHelpers)
set(CPNSA_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/cpnsa)

set(CPNSA_COMPONENTS cpnsa)
foreach(component IN ITEMS mpi cuda nccl)
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

install(DIRECTORY include/cpnsa DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING
  PATTERN "*.hpp" PATTERN "*.h"
  PATTERN mpi EXCLUDE PATTERN cuda EXCLUDE PATTERN nccl EXCLUDE)
foreach(component IN ITEMS mpi cuda nccl)
  if(TARGET cpnsa_${component})
    install(DIRECTORY include/cpnsa/${component} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cpnsa)
  endif()
endforeach()

configure_package_config_file(cmake/cpnsaConfig.cmake.in cpnsaConfig.cmake INSTALL_DESTINATION ${CPNSA_PACKAGE_DIR})
write_basic_package_version_file(cpnsaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cpnsaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/cpnsaConfigVersion.cmake
  DESTINATION ${CPNSA_PACKAGE_DIR})
if(TARGET cpnsa_nccl)
  install(FILES cmake/FindNCCL.cmake DESTINATION ${CPNSA_PACKAGE_DIR})
endif()
