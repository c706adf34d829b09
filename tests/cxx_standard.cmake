# cmake -DCOMPILER=... -DINCLUDE=... -P cxx_standard.cmake
# Compiles each header of the core as C++17: the first error must be the one that asks for C++20.
set(folders callbacks cpu threads)
list(TRANSFORM folders REPLACE "(.+)" "${INCLUDE}/cpnsa/\\1/*.hpp")
file(GLOB headers ${INCLUDE}/cpnsa/*.hpp ${folders})
list(LENGTH headers count)
if(count LESS 20)
  message(FATAL_ERROR "found ${count} headers in ${INCLUDE}, expected all of the core")
endif()
foreach(header IN LISTS headers)
  execute_process(
    COMMAND ${COMPILER} -std=c++17 -fsyntax-only -fmax-errors=1 -x c++ -I${INCLUDE} ${header}
    ERROR_VARIABLE errors
    RESULT_VARIABLE status
  )
  string(REGEX MATCH "error:[^\n]*" first "${errors}")
  if(status EQUAL 0 OR NOT first MATCHES "cpnsa needs C\\+\\+20")
    message(SEND_ERROR "${header}: found \"${first}\" as C++17, expected the error that asks for C++20 first")
  endif()
endforeach()
