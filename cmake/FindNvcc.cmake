# Finds a working nvcc: CUDACXX, CUDA_HOME, the PATH, /usr/local/cuda, or the nvidia-cuda-nvcc packages of the Python
# environment. Sets SKV_HAVE_CUDA and SKV_CUDART (the static runtime, so that the result loads on machines without CUDA).
set(CMAKE_CUDA_ARCHITECTURES OFF)  # gencode flags are per source file
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(CMAKE_CUDA_STANDARD 17)

set(SKV_PIP_CUDA "")
find_package(Python QUIET COMPONENTS Interpreter)
if(Python_EXECUTABLE)
  execute_process(COMMAND ${Python_EXECUTABLE} -c
    "import sysconfig, pathlib; r = pathlib.Path(sysconfig.get_paths()['purelib'], 'nvidia'); print(next((str(p.parent.parent) for p in sorted(r.glob('cu*/bin/nvcc'))), ''))"
    OUTPUT_VARIABLE SKV_PIP_CUDA OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(SKV_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin)
  find_program(SKV_NVCC nvcc HINTS /usr/local/cuda/bin ${SKV_PIP_CUDA}/bin)
  if(SKV_NVCC)
    set(CMAKE_CUDA_COMPILER ${SKV_NVCC})
  endif()
elseif(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER $ENV{CUDACXX})
endif()

if(CMAKE_CUDA_COMPILER)
  # The packaged nvcc does not know where its own libraries are.
  get_filename_component(SKV_CUDA_ROOT "${CMAKE_CUDA_COMPILER}" DIRECTORY)
  get_filename_component(SKV_CUDA_ROOT "${SKV_CUDA_ROOT}" DIRECTORY)
  foreach(lib "${SKV_CUDA_ROOT}/lib" "${SKV_CUDA_ROOT}/lib64")
    if(EXISTS "${lib}/libcudart_static.a")
      set(ENV{LIBRARY_PATH} "${lib}:$ENV{LIBRARY_PATH}")
    endif()
  endforeach()
  # Tried before CMake does: its own test of a compiler that does not work ends the configuration.
  set(_probe "${CMAKE_CURRENT_BINARY_DIR}/nvcc_probe")
  file(WRITE "${_probe}.cu" "#include <cuda_bf16.h>\n__global__ void k(__nv_bfloat16* p) { *p = 1.0f; }\nint main() { k<<<1, 1>>>(nullptr); }\n")
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} -o "${_probe}" "${_probe}.cu"
    RESULT_VARIABLE _failed OUTPUT_VARIABLE _output ERROR_VARIABLE _output)
  if(_failed)
    message(WARNING "${CMAKE_CUDA_COMPILER} does not compile and link a kernel, building without CUDA:\n${_output}")
    unset(CMAKE_CUDA_COMPILER)
  endif()
endif()
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  find_library(SKV_CUDART cudart_static
    HINTS ${SKV_CUDA_ROOT}/lib ${SKV_CUDA_ROOT}/lib64 ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} /usr/local/cuda/lib64)
  if(SKV_CUDART)
    set(SKV_HAVE_CUDA ON)
    set(SKV_CUDART ${SKV_CUDART} rt dl pthread)
  else()
    message(WARNING "nvcc was found, libcudart_static was not: building without CUDA")
  endif()
endif()
