# Installs the libraries, the headers and the package: find_package(cpnsa [COMPONENTS ...]) and
# pkg-config cpnsa, cpnsa_<component>. The components are those that cpnsa_add_component describes. Each has an export
# file of its own, so that a consumer needs only the dependencies of the components that it asks for.

include(CMakePackageConfigHelpers)
set(CPNSA_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/cpnsa)
get_property(components GLOBAL PROPERTY CPNSA_COMPONENTS)

# cpnsa_install_library(target export): a library, its headers' folder where it has one, and its export file.
function(cpnsa_install_library target export)
  install(
    TARGETS ${target}
    EXPORT cpnsa_${export}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  )
  install(EXPORT cpnsa_${export} NAMESPACE cpnsa:: DESTINATION ${CPNSA_PACKAGE_DIR} FILE cpnsa-${export}-targets.cmake)
  if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/include/cpnsa/${export})
    install(DIRECTORY include/cpnsa/${export} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cpnsa)
  endif()
endfunction()

# cpnsa_install_pc(name description libs requires): name.pc, good wherever the tree is moved to.
function(cpnsa_install_pc PC_NAME PC_DESCRIPTION PC_LIBS PC_REQUIRES)
  set(pc_dir ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  file(RELATIVE_PATH PC_PREFIX ${pc_dir} ${CMAKE_INSTALL_PREFIX})
  configure_file(cmake/cpnsa.pc.in ${CMAKE_CURRENT_BINARY_DIR}/${PC_NAME}.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${PC_NAME}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

# The core, whose folders of headers are those of cpnsa::cpnsa alone.
cpnsa_install_library(cpnsa cpnsa)
file(GLOB headers CONFIGURE_DEPENDS include/cpnsa/*.hpp)
install(FILES ${headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cpnsa)
install(
  DIRECTORY include/cpnsa/callbacks include/cpnsa/cpu include/cpnsa/threads
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cpnsa
)
cpnsa_install_pc(cpnsa "Native Sparse Attention, distributed: C++20" "-lcpnsa -lm -pthread" "")
if(TARGET cpnsa_c)
  install(FILES include/cpnsa/cpnsa.h include/cpnsa/cpnsa_decode.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cpnsa)
endif()

set(CPNSA_COMPONENT_FACTS "")
foreach(component IN LISTS components)
  foreach(
    field
    IN
    ITEMS DESCRIPTION LIBS PC_REQUIRES LANGUAGE MODULE REQUIRES DEPENDENCY
  )
    get_property(${field} GLOBAL PROPERTY CPNSA_COMPONENT_${component}_${field})
  endforeach()
  cpnsa_install_library(cpnsa_${component} ${component})
  cpnsa_install_pc(cpnsa_${component} "${DESCRIPTION}" "${LIBS}" "${PC_REQUIRES}")
  if(MODULE)
    install(FILES ${MODULE} DESTINATION ${CPNSA_PACKAGE_DIR})
  endif()
  foreach(field IN ITEMS LANGUAGE REQUIRES DEPENDENCY)
    if(${field})
      string(APPEND CPNSA_COMPONENT_FACTS "set(_cpnsa_${component}_${field} ${${field}})\n")
    endif()
  endforeach()
endforeach()
string(REPLACE ";" " " CPNSA_COMPONENTS "${components}")
string(REPLACE ";" " " CPNSA_COMPONENT_FACTS "${CPNSA_COMPONENT_FACTS}")

configure_package_config_file(cmake/cpnsaConfig.cmake.in cpnsaConfig.cmake INSTALL_DESTINATION ${CPNSA_PACKAGE_DIR})
write_basic_package_version_file(cpnsaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(
  FILES ${CMAKE_CURRENT_BINARY_DIR}/cpnsaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/cpnsaConfigVersion.cmake
  DESTINATION ${CPNSA_PACKAGE_DIR}
)
