# cmake -DPREFIX=... -DLIBDIR=... -DPAGE=... -DLANGUAGE=... -DPROGRAM=... -DWORK_DIR=... [-DEMPTY_SHELL=ON]
#   -P page.cmake
# Writes a page's program and its CMakeLists.txt to a fresh folder and runs all its shell commands there, with the
# package where the compilers find it; with EMPTY_SHELL in an environment of nothing but a PATH and a home folder, whose
# folder cpnsa is the prefix.
file(READ ${PAGE} text)

# The content of the first block of a language from `from` on, and where the text goes on behind it; -1: no block.
function(next_block language from content behind)
  string(SUBSTRING "${text}" ${from} -1 rest)
  string(FIND "${rest}" "\n```${language}\n" begin)
  if(begin EQUAL -1)
    set(${behind} -1 PARENT_SCOPE)
    return()
  endif()
  string(LENGTH "\n```${language}\n" fence)
  math(EXPR begin "${begin} + ${fence}")
  string(SUBSTRING "${rest}" ${begin} -1 rest)
  string(FIND "${rest}" "\n```\n" length)
  string(SUBSTRING "${rest}" 0 ${length} block)
  math(EXPR end "${from} + ${begin} + ${length}")
  set(${content} "${block}\n" PARENT_SCOPE)
  set(${behind} ${end} PARENT_SCOPE)
endfunction()

function(write_block language file)
  next_block(${language} 0 content behind)
  if(behind EQUAL -1)
    message(FATAL_ERROR "found no block of ${language} in ${PAGE}, expected ${file}")
  endif()
  file(WRITE ${WORK_DIR}/${file} "${content}")
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
write_block(${LANGUAGE} ${PROGRAM})
write_block(cmake CMakeLists.txt)
set(script "set -eux\n")
set(from 0)
while(NOT from EQUAL -1)
  next_block(sh ${from} content from)
  if(NOT from EQUAL -1)
    string(APPEND script "${content}")
  endif()
endwhile()
file(WRITE ${WORK_DIR}/run.sh "${script}")

if(EMPTY_SHELL)
  file(CREATE_LINK ${PREFIX} ${WORK_DIR}/cpnsa SYMBOLIC)
  if(NOT LIBDIR STREQUAL "lib" AND NOT EXISTS ${PREFIX}/lib)
    file(CREATE_LINK ${PREFIX}/${LIBDIR} ${PREFIX}/lib SYMBOLIC)
  endif()
  # The MPI of a container refuses root, and more ranks than cores, unless told otherwise.
  execute_process(
    COMMAND
      env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=${WORK_DIR} OMPI_ALLOW_RUN_AS_ROOT=1
      OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 sh run.sh
    WORKING_DIRECTORY ${WORK_DIR}
    COMMAND_ERROR_IS_FATAL ANY
  )
  return()
endif()
set(ENV{CMAKE_PREFIX_PATH} ${PREFIX})
set(ENV{PKG_CONFIG_PATH} ${PREFIX}/${LIBDIR}/pkgconfig)
set(ENV{LD_LIBRARY_PATH} ${PREFIX}/${LIBDIR}:$ENV{LD_LIBRARY_PATH})
execute_process(COMMAND sh run.sh WORKING_DIRECTORY ${WORK_DIR} COMMAND_ERROR_IS_FATAL ANY)
