# Finds a working nvcc: CUDACXX, CUDA_HOME, the PATH, /usr/local/cuda, or the nvidia-cuda-nvcc packages of the environment.
# Sets SKV_HAVE_CUDA and SKV_CUDART (the static runtime, so that the result loads on machines without CUDA).
set(CMAKE_CUDA_ARCHITECTURES OFF)  # gencode flags are per source file
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(CMAKE_CUDA_STANDARD 17)
set(SKV_PIP_CUDA "")
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_package(Python QUIET COMPONENTS Interpreter)
  if(Python_EXECUTABLE)
    execute_process(COMMAND ${Python_EXECUTABLE} -c
      "import sysconfig, pathlib, glob; r = pathlib.Path(sysconfig.get_paths()['purelib']) / 'nvidia'; print(next((str(p.parent.parent) for p in sorted(r.glob('cu*/bin/nvcc'))), ''))"
      OUTPUT_VARIABLE SKV_PIP_CUDA OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(_hints $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin)
  find_program(SKV_NVCC nvcc HINTS ${_hints} /usr/local/cuda/bin)
  if(NOT SKV_NVCC AND SKV_PIP_CUDA)
    find_program(SKV_NVCC nvcc HINTS ${SKV_PIP_CUDA}/bin)
  endif()
  if(SKV_NVCC)
    set(CMAKE_CUDA_COMPILER ${SKV_NVCC})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  find_library(SKV_CUDART cudart_static
    HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${SKV_PIP_CUDA}/lib ${SKV_PIP_CUDA}/lib64
          /usr/local/cuda/lib64 $ENV{CUDA_HOME}/lib64 $ENV{CUDA_HOME}/lib)
  if(SKV_CUDART)
    set(SKV_HAVE_CUDA ON)
    set(SKV_CUDART ${SKV_CUDART} rt dl pthread)
  else()
    message(WARNING "nvcc was found, libcudart_static was not: building without CUDA")
  endif()
endif()
