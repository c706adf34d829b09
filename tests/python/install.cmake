# cmake -DBUILD_DIR=... -DSOURCE_DIR=... -DWORK_DIR=... -DPYTHON=... -DTEST=... -P install.cmake
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix)
file(GLOB_RECURSE package ${WORK_DIR}/prefix/cpnsaConfig.cmake)
get_filename_component(package ${package} DIRECTORY)
run(${PYTHON} -m pip install --quiet --no-build-isolation --no-deps --target ${WORK_DIR}/site ${SOURCE_DIR}
    --config-settings=cmake.define.cpnsa_DIR=${package} --config-settings=build-dir=${WORK_DIR}/build
)
run(${CMAKE_COMMAND} -E env PYTHONPATH=${WORK_DIR}/site PYTHONDONTWRITEBYTECODE=1
    ${PYTHON} -m pytest -q -p no:cacheprovider ${TEST}
)
