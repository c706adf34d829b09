# cmake -DNM=... -DLIBRARY=... -DHEADER=... -P symbols.cmake
# Fails unless the shared library exports the functions that the header declares, and nothing else.
execute_process(
  COMMAND ${NM} --dynamic --defined-only --format=posix ${LIBRARY}
  OUTPUT_VARIABLE lines
  COMMAND_ERROR_IS_FATAL ANY
)
string(REGEX MATCHALL "[^\n]+" lines "${lines}")
list(TRANSFORM lines REPLACE " .*" "" OUTPUT_VARIABLE exported)
list(SORT exported)

file(READ ${HEADER} text)
get_filename_component(folder ${HEADER} DIRECTORY)
file(READ ${folder}/cpnsa_decode.h decode_text) # which the header includes
string(APPEND text "${decode_text}")
string(REGEX MATCHALL "CPNSA_API [^;]*;" declarations "${text}")
set(declared "")
foreach(declaration IN LISTS declarations)
  string(REGEX MATCH "(cpnsa_[a-z_]+)\\(" _ "${declaration}")
  list(APPEND declared ${CMAKE_MATCH_1})
endforeach()
list(SORT declared)

list(LENGTH declared count)
if(count LESS 30)
  message(FATAL_ERROR "found ${count} declarations in ${HEADER}, expected those of the whole interface")
endif()
if(NOT exported STREQUAL declared)
  message(FATAL_ERROR "exported: ${exported}\nexpected what the header declares: ${declared}")
endif()
foreach(symbol IN LISTS exported)
  message(STATUS "${symbol}")
endforeach()
