// A Python module whose import loads this library, which registers the kernels. `isa` names the instruction set chosen.
#include <Python.h>

#include "kernels.h"

extern "C" PyMODINIT_FUNC PyInit__cpu() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* made = PyModule_Create(&module);
  if (made) PyModule_AddStringConstant(made, "isa", hebbkern::kernels<float>().name);
  return made;
}
