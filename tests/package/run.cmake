# cmake -DPREFIX=... -DCONSUMER_DIR=... -DWORK_DIR=... -DCOMPONENTS=a,b -P run.cmake
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(build ${WORK_DIR}/build)
file(REMOVE_RECURSE ${build})
set(flags "")
if(SANITIZE)
  set(flags "-fsanitize=${SANITIZE}")
endif()
run(${CMAKE_COMMAND} -S ${CONSUMER_DIR} -B ${build} -DCMAKE_PREFIX_PATH=${PREFIX} -DCONSUMER_COMPONENTS=${COMPONENTS}
    -DCMAKE_CXX_FLAGS=${flags} -DCMAKE_C_FLAGS=${flags} -DCMAKE_BUILD_TYPE=Release
)
run(${CMAKE_COMMAND} --build ${build})
run(${build}/consumer)
string(REPLACE "," ";" components "${COMPONENTS}")
foreach(component IN LISTS components)
  if(component MATCHES "^c(_static)?$")
    run(${build}/consumer_${component})
  endif()
endforeach()
