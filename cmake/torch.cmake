# Asks the interpreter for torch's folders, unless PSPNET_FAST_TORCH (torch's package folder) and PSPNET_FAST_PYBIND11
# (pybind11's include folder) name them, as setup.py does from an isolated build. Sets TORCH_FOUND, TORCH_INCLUDES, TORCH_LIBRARY_DIR, TORCH_OPENMP, TORCH_CUDA
# (the CUDA version torch was built with, or empty) and PYBIND11_INCLUDE in the caller's scope.
macro(pspnet_fast_find_torch)
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "
import importlib.util, os
torch = '${PSPNET_FAST_TORCH}' or os.path.dirname(importlib.util.find_spec('torch').origin)
pybind = '${PSPNET_FAST_PYBIND11}'
if not pybind:
    import pybind11
    pybind = pybind11.get_include()
version = {}
exec(open(os.path.join(torch, 'version.py')).read(), version)
folders = [os.path.join(torch, 'include'), os.path.join(torch, 'include', 'torch', 'csrc', 'api', 'include')]
lib = os.path.join(torch, 'lib')
gomp = sorted(f for f in os.listdir(lib) if f.startswith('libgomp'))
print('|'.join([';'.join(folders), lib, os.path.join(lib, gomp[0]) if gomp else '', version.get('cuda') or '', pybind]), end='')
"
    OUTPUT_VARIABLE _answer
    RESULT_VARIABLE _failed
    ERROR_QUIET)
  set(TORCH_FOUND FALSE)
  if(NOT _failed AND Python_Development.Module_FOUND)
    set(TORCH_FOUND TRUE)
    string(REPLACE ";" "\\;" _answer "${_answer}")
    string(REPLACE "|" ";" _answer "${_answer}")
    list(GET _answer 0 TORCH_INCLUDES)
    list(GET _answer 1 TORCH_LIBRARY_DIR)
    list(GET _answer 2 TORCH_OPENMP)
    list(GET _answer 3 TORCH_CUDA)
    list(GET _answer 4 PYBIND11_INCLUDE)
    if(NOT TORCH_OPENMP)
      set(TORCH_OPENMP gomp)
    endif()
  endif()
endmacro()
