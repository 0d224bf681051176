// A Python module whose import loads this library, which registers the kernels. `isa` names the instruction set chosen,
// `matrix_unit` the unit that competitions are screened on, `pair_unit` that which multiplies bfloat16 ("" for none).
#include <Python.h>

#include "cpu/products/pairs.h"
#include "cpu/products/screen.h"
#include "cpu/simd/kernels.h"

using namespace hebbkern;

// screening(mode): 0 off, 1 where it is faster, 2 wherever it can be.
static PyObject* choose_screening(PyObject*, PyObject* mode) {
  const long chosen = PyLong_AsLong(mode);
  if (PyErr_Occurred()) return nullptr;
  set_screening(Screening(chosen < 0 ? 0 : chosen > 2 ? 2 : chosen));
  Py_RETURN_NONE;
}

// screened() -> (patches screened since the process began, patches left undecided)
static PyObject* count(PyObject*, PyObject*) {
  return Py_BuildValue("LL", (long long)screened().patches, (long long)screened().left);
}

extern "C" PyMODINIT_FUNC PyInit__cpu() {
  static PyMethodDef methods[] = {{"screening", choose_screening, METH_O, nullptr},
                                  {"screened", count, METH_NOARGS, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  PyObject* made = PyModule_Create(&module);
  if (!made) return nullptr;
  PyModule_AddStringConstant(made, "isa", kernels<float>().name);
  PyModule_AddStringConstant(made, "matrix_unit", matrix_unit() ? matrix_unit()->name : "");
  PyModule_AddStringConstant(made, "pair_unit", pair_unit() ? pair_unit()->name : "");
  return made;
}
