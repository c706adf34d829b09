# CPNSA_COMMIT: the commit of the sources, with -dirty where files differ from it; "unknown" outside of a repository. It
# is read when CMake configures, so that a commit does not link every program again.
set(CPNSA_COMMIT unknown)
if(EXISTS ${PROJECT_SOURCE_DIR}/COMMIT) # of an sdist
  file(READ ${PROJECT_SOURCE_DIR}/COMMIT CPNSA_COMMIT)
  string(STRIP "${CPNSA_COMMIT}" CPNSA_COMMIT)
endif()
find_package(Git QUIET)
if(Git_FOUND AND EXISTS ${PROJECT_SOURCE_DIR}/.git)
  execute_process(
    COMMAND ${GIT_EXECUTABLE} describe --always --dirty --abbrev=12 --exclude=*
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    OUTPUT_VARIABLE described
    RESULT_VARIABLE failed
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET
  )
  if(NOT failed)
    set(CPNSA_COMMIT ${described})
  endif()
endif()
