// A Python module whose import loads this library, which registers the kernels as overload "cuda" of the operators.
#include <Python.h>

#include "cuda/device/status.cuh"
#include "cuda/ops/screen.cuh"

using namespace hebbkern;

// skipped(index) -> steps skipped on that device since the last call
static PyObject* count(PyObject*, PyObject* index) {
  const long device = PyLong_AsLong(index);
  if (PyErr_Occurred()) return nullptr;
  return PyLong_FromLong(take_skipped(int(device)));
}

// stepped() -> the indices of devices on which steps were taken
static PyObject* stepped(PyObject*, PyObject*) {
  PyObject* all = PyList_New(0);
  for (const int index : counted()) {
    PyObject* one = PyLong_FromLong(index);
    PyList_Append(all, one);
    Py_DECREF(one);
  }
  return all;
}

// screening(mode): 0 off, 1 where it is faster, 2 wherever it can be.
static PyObject* choose_screening(PyObject*, PyObject* mode) {
  const long chosen = PyLong_AsLong(mode);
  if (PyErr_Occurred()) return nullptr;
  set_screening(Screening(chosen < 0 ? 0 : chosen > 2 ? 2 : chosen));
  Py_RETURN_NONE;
}

#if defined(__CUDACC__)
#define HEBBKERN_INIT PyInit__cuda
static constexpr const char* name = "_cuda";
static PyMethodDef methods[] = {{"skipped", count, METH_O, nullptr},
                                {"stepped", stepped, METH_NOARGS, nullptr},
                                {"screening", choose_screening, METH_O, nullptr},
                                {nullptr, nullptr, 0, nullptr}};
#else
#define HEBBKERN_INIT PyInit__cuda_host
static constexpr const char* name = "_cuda_host";

// note(mode): 0 nothing, 1 notes launches down, 2 only notes them down, 3 also keeps values out of sight, as on a GPU.
// Forgets those noted before.
static PyObject* note(PyObject*, PyObject* mode) {
  const long chosen = PyLong_AsLong(mode);
  if (PyErr_Occurred()) return nullptr;
  launch_log() = {chosen > 0, chosen == 2, chosen == 3, {}};
  Py_RETURN_NONE;
}

// launches() -> [(kernel, grid, threads, bytes of dynamic shared memory, instance of its template), ...]
static PyObject* launches(PyObject*, PyObject*) {
  PyObject* all = PyList_New(0);
  for (const Launch& launch : launch_log().launches) {
    PyObject* one = Py_BuildValue("s(LLL)LLs", launch.kernel.c_str(), (long long)launch.grid[0],
                                  (long long)launch.grid[1], (long long)launch.grid[2], (long long)launch.block,
                                  (long long)launch.shared, launch.code.c_str());
    PyList_Append(all, one);
    Py_DECREF(one);
  }
  return all;
}

// seed(number): the order in which threads and blocks run; 0 is by number.
static PyObject* seed(PyObject*, PyObject* number) {
  const long chosen = PyLong_AsLong(number);
  if (PyErr_Occurred()) return nullptr;
  cudaemu::seed = chosen;
  Py_RETURN_NONE;
}

// screened() -> (patches screened since the process began, patches that competed again)
static PyObject* count_screened(PyObject*, PyObject*) {
  return Py_BuildValue("LL", (long long)screened_so_far().patches, (long long)screened_so_far().left);
}

static PyMethodDef methods[] = {{"skipped", count, METH_O, nullptr},
                                {"stepped", stepped, METH_NOARGS, nullptr},
                                {"screening", choose_screening, METH_O, nullptr},
                                {"screened", count_screened, METH_NOARGS, nullptr},
                                {"note", note, METH_O, nullptr},
                                {"launches", launches, METH_NOARGS, nullptr},
                                {"seed", seed, METH_O, nullptr},
                                {nullptr, nullptr, 0, nullptr}};
#endif

#define HEBBKERN_WORDS(...) #__VA_ARGS__
#define HEBBKERN_SPELLED(...) HEBBKERN_WORDS(__VA_ARGS__)

extern "C" PyMODINIT_FUNC HEBBKERN_INIT() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, name, nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  PyObject* made = PyModule_Create(&module);
#if defined(__CUDACC__)  // "800,900": what this was compiled for
  if (made) PyModule_AddStringConstant(made, "architectures", HEBBKERN_SPELLED(__CUDA_ARCH_LIST__));
#endif
  return made;
}
