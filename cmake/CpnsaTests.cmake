# How tests are declared: cpnsa_add_suite and cpnsa_add_test_backend compile the two halves of a test executable once,
# cpnsa_add_test links them and runs the result, cpnsa_add_command_test runs any other command.
include(GoogleTest)

# Open MPI refuses root, and more ranks than cores, unless told otherwise.
set(CPNSA_MPI_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1)

# Test code is compiled at -O1: it takes no time to run, and much to compile.
function(cpnsa_configure_suite target)
  cpnsa_configure_target(${target})
  target_compile_options(${target} PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O1>)
endfunction()

# Test code that several executables share, compiled once: cpnsa_<name>_suite.
# cpnsa_add_suite(name SOURCES ... [LIBRARIES ...])
function(cpnsa_add_suite name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES" ${ARGN})
  add_library(cpnsa_${name}_suite OBJECT ${ARG_SOURCES})
  target_link_libraries(cpnsa_${name}_suite PRIVATE cpnsa_test_support fmt::fmt PUBLIC ${ARG_LIBRARIES})
  cpnsa_configure_suite(cpnsa_${name}_suite)
endfunction()

# A device or a transport that suites run on: cpnsa_backend_<name>. LABEL is that of its tests, unless they have their
# own. LAUNCH says how its tests start: as one process whose tests ctest lists (the default), as processes under
# mpirun, or as one process that starts the ranks itself.
# cpnsa_add_test_backend(name SOURCES ... [LIBRARIES ...] [LABEL label] [LAUNCH mpirun|ranks])
function(cpnsa_add_test_backend name)
  cmake_parse_arguments(ARG "" "LABEL;LAUNCH" "SOURCES;LIBRARIES" ${ARGN})
  add_library(cpnsa_backend_${name} OBJECT ${ARG_SOURCES})
  target_link_libraries(cpnsa_backend_${name} PRIVATE cpnsa_test_support fmt::fmt PUBLIC ${ARG_LIBRARIES})
  set_target_properties(cpnsa_backend_${name} PROPERTIES CPNSA_LABEL "${ARG_LABEL}" CPNSA_LAUNCH "${ARG_LAUNCH}")
  cpnsa_configure_suite(cpnsa_backend_${name})
endfunction()

# An executable of suites and sources on backends, and its tests. Does nothing in a build without one of the backends.
# Under LAUNCH mpirun or ranks there is a test for each number of ranks, <label>/<name>_<ranks>; else a test for each
# of GoogleTest's, <label>/<its name>. The target <label>_tests builds what a label runs in one process.
# cpnsa_add_test(name [LABEL label] [SUITES ...] [BACKENDS ...] [SOURCES ...] [RANKS 1 2 4] [LIBRARIES ...]
#   [COMMANDS targets] [DEFINITIONS ...] [ENVIRONMENT NAME=value...] [TIMEOUT seconds])
function(cpnsa_add_test name)
  cmake_parse_arguments(
    ARG
    ""
    "LABEL;TIMEOUT"
    "SUITES;BACKENDS;SOURCES;RANKS;LIBRARIES;COMMANDS;DEFINITIONS;ENVIRONMENT"
    ${ARGN}
  )
  set(launch "")
  set(label "")
  foreach(backend IN LISTS ARG_BACKENDS)
    if(NOT TARGET cpnsa_backend_${backend})
      return()
    endif()
    foreach(property IN ITEMS LABEL LAUNCH)
      get_target_property(value cpnsa_backend_${backend} CPNSA_${property})
      if(value)
        string(TOLOWER ${property} variable)
        set(${variable} ${value})
      endif()
    endforeach()
  endforeach()
  if(ARG_LABEL)
    set(label ${ARG_LABEL})
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()

  list(TRANSFORM ARG_SUITES REPLACE "(.+)" "cpnsa_\\1_suite")
  list(TRANSFORM ARG_BACKENDS REPLACE "(.+)" "cpnsa_backend_\\1")
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(
    ${name}
    PRIVATE ${ARG_SUITES} ${ARG_BACKENDS} cpnsa_test_support fmt::fmt ${ARG_LIBRARIES}
  )
  target_compile_definitions(${name} PRIVATE ${ARG_DEFINITIONS})
  cpnsa_configure_suite(${name})
  if(ARG_COMMANDS) # programs that the tests start
    add_dependencies(${name} ${ARG_COMMANDS})
  endif()

  if(NOT launch)
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    gtest_discover_tests(
      ${name}
      DISCOVERY_MODE PRE_TEST
      TEST_PREFIX ${label}/
      PROPERTIES LABELS ${label} TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT "${ARG_ENVIRONMENT}"
    )
    if(NOT TARGET ${label}_tests)
      add_custom_target(${label}_tests)
    endif()
    add_dependencies(${label}_tests ${name})
    return()
  endif()
  foreach(ranks IN LISTS ARG_RANKS)
    set(test ${label}/${name}_${ranks})
    if(launch STREQUAL "mpirun")
      add_test(
        NAME ${test}
        COMMAND
          ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${MPIEXEC_PREFLAGS} $<TARGET_FILE:${name}>
          ${MPIEXEC_POSTFLAGS}
      )
      set_tests_properties(${test} PROPERTIES ENVIRONMENT "${CPNSA_MPI_ENVIRONMENT};${ARG_ENVIRONMENT}")
    else() # with a GPU for each rank, or with a share of one
      add_test(NAME ${test} COMMAND ${name} ${ranks})
      set_tests_properties(
        ${test}
        PROPERTIES ENVIRONMENT "${ARG_ENVIRONMENT}" RESOURCE_LOCK gpu SKIP_RETURN_CODE 77
      ) # 77: this machine has no GPU
    endif()
    set_tests_properties(
      ${test}
      PROPERTIES LABELS ${label} TIMEOUT ${ARG_TIMEOUT} PROCESSORS ${ranks}
    )
  endforeach()
endfunction()

# A test that is a command; <name> is the test's whole name. PROVIDES and REQUIRES name ctest's fixtures.
# cpnsa_add_command_test(name LABEL label COMMAND ... [ENVIRONMENT NAME=value...] [TIMEOUT seconds] [PROVIDES fixture]
#   [REQUIRES fixture] [PROCESSORS n] [SKIP_RETURN_CODE n])
function(cpnsa_add_command_test name)
  cmake_parse_arguments(
    ARG
    ""
    "LABEL;TIMEOUT;PROVIDES;REQUIRES;PROCESSORS;SKIP_RETURN_CODE"
    "COMMAND;ENVIRONMENT"
    ${ARGN}
  )
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${ARG_COMMAND})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
  if(ARG_ENVIRONMENT)
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "${ARG_ENVIRONMENT}")
  endif()
  foreach(
    pair
    IN
    ITEMS PROVIDES=FIXTURES_SETUP REQUIRES=FIXTURES_REQUIRED PROCESSORS=PROCESSORS SKIP_RETURN_CODE=SKIP_RETURN_CODE
  )
    string(REGEX MATCH "(.*)=(.*)" _ ${pair})
    if(DEFINED ARG_${CMAKE_MATCH_1})
      set_tests_properties(${name} PROPERTIES ${CMAKE_MATCH_2} ${ARG_${CMAKE_MATCH_1}})
    endif()
  endforeach()
endfunction()

# Compiles each public header alone, so that none depends on what a caller included before it.
# cpnsa_check_headers(name FOLDERS folder... LIBRARIES library...): folders under include/cpnsa, "." for its own files.
function(cpnsa_check_headers name)
  cmake_parse_arguments(ARG "" "" "FOLDERS;LIBRARIES" ${ARGN})
  set(sources "")
  foreach(folder IN LISTS ARG_FOLDERS)
    file(
      GLOB headers
      CONFIGURE_DEPENDS
      RELATIVE ${PROJECT_SOURCE_DIR}/include
      ${PROJECT_SOURCE_DIR}/include/cpnsa/${folder}/*.hpp
    )
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

# Appends the paths of the executables and shared libraries that a folder's targets build, each with a newline.
function(cpnsa_find_binaries folder variable)
  set(paths "${${variable}}")
  get_property(targets DIRECTORY ${folder} PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(type ${target} TYPE)
    if(type MATCHES "^(EXECUTABLE|SHARED_LIBRARY|MODULE_LIBRARY)$")
      string(APPEND paths "$<TARGET_FILE:${target}>\n")
    endif()
  endforeach()
  get_property(folders DIRECTORY ${folder} PROPERTY SUBDIRECTORIES)
  foreach(subfolder IN LISTS folders)
    cpnsa_find_binaries(${subfolder} paths)
  endforeach()
  set(${variable} "${paths}" PARENT_SCOPE)
endfunction()
