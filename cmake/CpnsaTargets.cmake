# The options that every target of the project is compiled with.

# Makes an error of memory harder to exploit. Sources whose loops must not pay for it say -fno-stack-protector
# (kernels/cpu). _FORTIFY_SOURCE needs optimisation, and hides accesses from sanitizers.
function(cpnsa_harden_target target)
  target_compile_options(
    ${target}
    PRIVATE
      $<$<COMPILE_LANGUAGE:C,CXX>:-fstack-protector-strong>
      $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fstack-protector-strong>
  )
  if(NOT CPNSA_SANITIZE)
    target_compile_options(
      ${target}
      PRIVATE $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<NOT:$<CONFIG:Debug>>>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=2>
    )
  endif()
  target_link_options(${target} PRIVATE -Wl,-z,relro,-z,now)
endfunction()

# A binary that is installed searches for libraries where it was linked, in the build tree too. CMake would otherwise
# leave room for another path by an empty entry, for which the loader searches the current folder.
function(cpnsa_set_run_path target)
  set_target_properties(${target} PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH_USE_LINK_PATH ON)
endfunction()

function(cpnsa_configure_target target)
  cpnsa_harden_target(${target})
  target_compile_options(
    ${target}
    PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Wall
      -Wextra
      -Wshadow=local>
      $<$<COMPILE_LANGUAGE:C>:-Wall
      -Wextra
      -Wpedantic>
      $<$<COMPILE_LANGUAGE:C,CXX>:$<$<BOOL:${CPNSA_WARNINGS_AS_ERRORS}>:-Werror>>
  )
  if(CPNSA_SANITIZE)
    target_compile_options(
      ${target}
      PRIVATE
        $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${CPNSA_SANITIZE}
        -fno-omit-frame-pointer
        -fno-sanitize-recover=all>
    )
    if(CPNSA_SANITIZE MATCHES address) # which finds these as well; they take the compiler as long as all the rest
      target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=null,object-size,vptr>)
    endif()
    target_link_options(${target} PUBLIC -fsanitize=${CPNSA_SANITIZE})
  endif()
endfunction()

# Sources of this folder that run once, on flags, JSON and the like, whose libraries compile twice as long at -O3.
function(cpnsa_cold_sources)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-O1>)
endfunction()

# Packages the library cpnsa_<name>: as a component of find_package(cpnsa) and, with LIBS, as cpnsa_<name>.pc. REQUIRES
# names other components, DEPENDENCY the arguments of find_dependency, LANGUAGE one that the project must have enabled,
# MODULE a find module to install.
# cpnsa_add_component(name [DESCRIPTION text LIBS flags] [PC_REQUIRES packages] [REQUIRES components] [DEPENDENCY ...]
#   [LANGUAGE language] [MODULE file])
function(cpnsa_add_component name)
  cmake_parse_arguments(ARG "" "DESCRIPTION;LIBS;PC_REQUIRES;LANGUAGE;MODULE" "REQUIRES;DEPENDENCY" ${ARGN})
  set_property(GLOBAL APPEND PROPERTY CPNSA_COMPONENTS ${name})
  foreach(
    field
    IN
    ITEMS DESCRIPTION LIBS PC_REQUIRES LANGUAGE MODULE REQUIRES DEPENDENCY
  )
    set_property(GLOBAL PROPERTY CPNSA_COMPONENT_${name}_${field} "${ARG_${field}}")
  endforeach()
endfunction()

# A library of the project: cpnsa::<name> in the build tree and, once installed, in a consumer's.
function(cpnsa_add_library target name)
  add_library(${target})
  add_library(cpnsa::${name} ALIAS ${target})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(
    ${target}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    PRIVATE ${PROJECT_SOURCE_DIR}
  )
  set_target_properties(
    ${target}
    PROPERTIES
      EXPORT_NAME ${name}
      VERSION ${PROJECT_VERSION}
      SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  ) # of a shared build; C++ promises no more
  cpnsa_set_run_path(${target})
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:${cpnsa_fmt_inside}>) # formats messages, inside only
  cpnsa_configure_target(${target})
endfunction()
