// SPDX-License-Identifier: Apache-2.0
#include <new>
#include <string>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "innerkv/attention.h"
#include "innerkv/cuda.h"
#include "innerkv/error.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace innerkv::python {
namespace {

/// InvalidArgument is Python's ValueError, OutOfPages innerkv.OutOfPages, which is a MemoryError, a device's
/// OutOfMemory MemoryError, anything else of the library RuntimeError: each with the library's text.
void translate_exceptions(nb::module_& module) {
    static nb::handle out_of_pages;
    out_of_pages = nb::exception<OutOfPages>(module, "OutOfPages", PyExc_MemoryError);
    out_of_pages.attr("__doc__") =
        "The cache has too few free pages for what was asked; it is as it was before the call.";
    nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
        try {
            std::rethrow_exception(pointer);
        } catch (const InvalidArgument& error) {
            PyErr_SetString(PyExc_ValueError, error.what());
        } catch (const OutOfPages& error) {
            PyErr_SetString(out_of_pages.ptr(), error.what());
        } catch (const cuda::OutOfMemory& error) {
            PyErr_SetString(PyExc_MemoryError, error.what());
        } catch (const Error& error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
    });
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const std::string_view name : available_isas()) names.emplace_back(name);
    return names;
}

} // namespace
} // namespace innerkv::python

NB_MODULE(_core, module) {
    using namespace innerkv::python;
    module.doc() = "The innerkv library as it is; innerkv/*.py is what to use.";
    module.attr("__version__") = INNERKV_VERSION;
    translate_exceptions(module);
    bind_cache(module);
    bind_device(module);
    bind_codecs(module);
    bind_plan(module);
    module.def("available_isas", isas,
               "Instruction sets this build has and this processor runs, best first.");
    module.def("get_num_threads", thread_count,
               "Threads that appends and attention run on, the caller included.");
    module.def(
        "set_num_threads", set_thread_count, nb::arg("threads"),
        nb::call_guard<nb::gil_scoped_release>(),
        "Sets how many threads appends and attention of this process run on, 1 to 1024. At first "
        "they are INNERKV_NUM_THREADS, else OMP_NUM_THREADS, else one a processor.");
}
