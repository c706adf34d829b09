# Compiles each public header alone, so that none depends on what a caller included before it.
# cpnsa_check_headers(name FOLDERS folder... LIBRARIES library...): folders under include/cpnsa, "." for its own files.
function(cpnsa_check_headers name)
  cmake_parse_arguments(ARG "" "" "FOLDERS;LIBRARIES" ${ARGN})
  set(sources)
  foreach(folder IN LISTS ARG_FOLDERS)
    file(GLOB headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include
      ${PROJECT_SOURCE_DIR}/include/cpnsa/${folder}/*.hpp)
    foreach(header IN LISTS headers)
      string(MAKE_C_IDENTIFIER ${header} stem)
      set(source ${CMAKE_CURRENT_BINARY_DIR}/headers/${stem}.cpp)
      # Twice, so that a missing include guard is an error too.
      file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${header}\"\n#include \"${header}\"\n")
      list(APPEND sources ${source})
    endforeach()
  endforeach()
  add_library(${name} OBJECT ${sources})
  target_link_libraries(${name} PRIVATE ${ARG_LIBRARIES})
  cpnsa_configure_target(${name})
endfunction()

cpnsa_check_headers(cpnsa_headers FOLDERS . cpu threads callbacks LIBRARIES cpnsa::cpnsa)
foreach(component IN ITEMS mpi cuda nccl)
  if(TARGET cpnsa_${component})
    cpnsa_check_headers(cpnsa_${component}_headers FOLDERS ${component} LIBRARIES cpnsa::${component})
  endif()
endforeach()
