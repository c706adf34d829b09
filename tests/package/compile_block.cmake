# cmake -DPREFIX=... -DLIBDIR=... -DPAGE=... -DLANGUAGE=... -DCOMPILER=... -DPACKAGES=a,b -DWORK_DIR=... -P
#   compile_block.cmake
# Compiles and links the first block of a language of a page with packages of pkg-config: for programs that need a GPU.
file(READ ${PAGE} text)
string(FIND "${text}" "\n```${LANGUAGE}\n" begin)
if(begin EQUAL -1)
  message(FATAL_ERROR "found no block of ${LANGUAGE} in ${PAGE}, expected a program")
endif()
string(LENGTH "\n```${LANGUAGE}\n" fence)
math(EXPR begin "${begin} + ${fence}")
string(SUBSTRING "${text}" ${begin} -1 text)
string(FIND "${text}" "\n```\n" length)
string(SUBSTRING "${text}" 0 ${length} block)
file(REMOVE_RECURSE ${WORK_DIR})
file(WRITE ${WORK_DIR}/program.cpp "${block}\n")
set(ENV{PKG_CONFIG_PATH} ${PREFIX}/${LIBDIR}/pkgconfig)
string(REPLACE "," " " PACKAGES "${PACKAGES}")
execute_process(
  COMMAND sh -euxc "${COMPILER} -std=c++20 program.cpp $(pkg-config --cflags --libs ${PACKAGES}) -o program"
  WORKING_DIRECTORY ${WORK_DIR}
  COMMAND_ERROR_IS_FATAL ANY
)
