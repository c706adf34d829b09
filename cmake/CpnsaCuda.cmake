# The CUDA language, and what the project's .cu files are compiled with. No GPU is needed to compile.

# 12.8 is the first that tells which device a stream belongs to.
find_package(CUDAToolkit 12.8 REQUIRED)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND CUDAToolkit_NVCC_EXECUTABLE)
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE}) # also where nvcc is not on the PATH
endif()

# Code for Ampere and Hopper, and PTX of 80 that every later GPU can run.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80;90a-real" CACHE STRING "GPU architectures to compile for")
endif()
enable_language(CUDA)

# cxx_std_20 asks the same of .cu files, but CMake 3.25 knows no flag for it, though nvcc has one.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()

# ptxas reports each kernel's registers and spills, which the build log keeps.
set(
  CPNSA_CUDA_OPTIONS
  --expt-relaxed-constexpr
  -lineinfo
  -Xptxas=-v
  -Xcompiler=-Wall,-Wextra
  $<$<BOOL:${CPNSA_WARNINGS_AS_ERRORS}>:--Werror=all-warnings>
)

# A library with .cu files in it: cpnsa_add_library, the options above, the static runtime, never libcuda.
function(cpnsa_add_cuda_library target name)
  cpnsa_add_library(${target} ${name})
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${CPNSA_CUDA_OPTIONS}>")
  # The runtime is linked below, so that a consumer without the CUDA language links it too.
  set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY None CUDA_SEPARABLE_COMPILATION OFF)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()
