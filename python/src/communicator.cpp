#include "src/communicator.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cmath>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "cpnsa/callbacks/communicator.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

std::vector<SharedCommunicator> threads_communicators(int ranks) {
  if (ranks < 1) throw ArgumentError(fmt::format("ranks: found {}, expected at least 1", ranks));
  std::vector<SharedCommunicator> all;
  for (auto& one : threads::make_communicators(ranks)) all.emplace_back(std::move(one), nb::object());
  return all;
}

/// The text of an exception. Never throws, also where its __str__ raises or its text is no UTF-8.
std::string text_of(nb::handle exception) {
  const nb::object text = nb::steal(PyObject_Str(exception.ptr()));
  const nb::object bytes =
      text.is_valid() ? nb::steal(PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace")) : nb::object();
  PyErr_Clear();
  return bytes.is_valid() ? std::string(PyBytes_AS_STRING(bytes.ptr())) : "an exception whose text cannot be read";
}

/// Views of C++ memory for one call of a Python function. They are released after it: reading one later is an error in
/// Python, not a read of memory that may be gone.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    for (const nb::object& view : views_) {
      const nb::object released = nb::steal(PyObject_CallMethod(view.ptr(), "release", nullptr));
      if (!released.is_valid()) PyErr_Clear();  // something still exports it
    }
    PyErr_Restore(type, value, trace);
  }

  /// Writable, also where the function only reads: PyTorch warns of memory that is not.
  nb::object view(void* data, std::size_t bytes) {
    views_.push_back(
        nb::steal(PyMemoryView_FromMemory(static_cast<char*>(data), static_cast<Py_ssize_t>(bytes), PyBUF_WRITE)));
    if (!views_.back().is_valid()) nb::raise_python_error();
    return views_.back();
  }

 private:
  std::vector<nb::object> views_;
};

/// Python functions that C++ calls and lets go of on threads that do not hold the interpreter's lock.
class Functions {
 public:
  Functions(nb::object exchange, nb::object all_gather, nb::object set_deadline, std::shared_ptr<Interrupt> interrupt)
      : exchange_(std::move(exchange)),
        all_gather_(std::move(all_gather)),
        set_deadline_(std::move(set_deadline)),
        interrupt_(std::move(interrupt)) {}
  Functions(const Functions&) = delete;
  Functions& operator=(const Functions&) = delete;
  ~Functions() {
    if (!Py_IsInitialized()) {  // nothing of Python is left to be let go of
      exchange_.release(), all_gather_.release(), set_deadline_.release(), interrupt_->exception.release();
      return;
    }
    const nb::gil_scoped_acquire held;
    exchange_.reset(), all_gather_.reset(), set_deadline_.reset(), interrupt_->exception.reset();
  }

  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives) const {
    call([&](Memory& memory) {
      nb::list to, from;
      for (const SendMessage& message : sends)
        to.append(nb::make_tuple(message.peer, memory.view(const_cast<void*>(message.data), message.bytes)));
      for (const ReceiveMessage& message : receives)
        from.append(nb::make_tuple(message.peer, memory.view(message.data, message.bytes)));
      exchange_(to, from);
    });
  }

  void all_gather(std::byte* all, std::size_t bytes, int ranks) const {
    call([&](Memory& memory) { all_gather_(memory.view(all, bytes * static_cast<std::size_t>(ranks)), bytes); });
  }

  void set_deadline(std::chrono::milliseconds deadline) const {
    call([&](Memory&) { set_deadline_(static_cast<double>(deadline.count()) * 1e-3); });
  }

 private:
  /// Turns an exception of the function into one with its text, which may pass threads that cannot hold a Python
  /// exception. An interrupt is stored besides.
  template <class Body>
  void call(const Body& body) const {
    const nb::gil_scoped_acquire held;
    try {
      Memory memory;
      body(memory);
    } catch (nb::python_error& error) {
      const nb::module_ errors = nb::module_::import_("cpnsa.errors");
      const std::string text = text_of(error.value());
      if (error.matches(errors.attr("DeadlineError"))) throw DeadlineError(text);
      if (error.matches(errors.attr("CommunicationError"))) throw CommunicationError(text);
      if (!error.matches(PyExc_Exception)) interrupt_->exception = nb::borrow(error.value());
      throw CommunicationError(fmt::format("{}: {}", nb::str(error.type().attr("__name__")).c_str(), text));
    }
  }

  nb::object exchange_;
  nb::object all_gather_;
  nb::object set_deadline_;
  std::shared_ptr<Interrupt> interrupt_;
};

SharedCommunicator callback_communicator(int rank, int size, nb::object exchange, nb::object all_gather,
                                         nb::object set_deadline, nb::object owner) {
  const auto interrupt = std::make_shared<Interrupt>();
  const auto functions =
      std::make_shared<Functions>(std::move(exchange), std::move(all_gather), std::move(set_deadline), interrupt);
  callbacks::Callbacks callbacks;
  callbacks.exchange = [functions](auto sends, auto receives) { functions->exchange(sends, receives); };
  callbacks.all_gather = [functions, size](std::byte* all, std::size_t bytes) {
    functions->all_gather(all, bytes, size);
  };
  callbacks.set_deadline = [functions](std::chrono::milliseconds deadline) { functions->set_deadline(deadline); };
  return {callbacks::make_communicator(rank, size, std::move(callbacks)), std::move(owner), interrupt};
}

}  // namespace

std::chrono::milliseconds deadline_of(double seconds) {
  if (!std::isfinite(seconds) || seconds <= 0 || seconds > 1e9)
    throw ArgumentError(fmt::format("deadline: found {} seconds, expected a positive number", seconds));
  return std::chrono::milliseconds(std::max<std::int64_t>(1, static_cast<std::int64_t>(seconds * 1e3)));
}

void SharedCommunicator::refuse(const std::string& problem) const {
  const SharedCommunicator alive = *this;
  Communicator& communicator = get();
  alive.run([&] { cpnsa::refuse(communicator, problem); });
}

void SharedCommunicator::raise_interrupt() const {
  if (!state_->interrupt || !state_->interrupt->exception.is_valid()) return;
  const nb::object exception = std::move(state_->interrupt->exception);
  state_->interrupt->exception = nb::object();
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  nb::raise_python_error();
}

void bind_communicator(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<SharedCommunicator>(module, "Communicator", "Moves bytes between ranks.")
      .def_prop_ro("name", [](const SharedCommunicator& self) { return self.get().name(); })
      .def_prop_ro("rank", [](const SharedCommunicator& self) { return self.get().rank(); })
      .def_prop_ro("size", [](const SharedCommunicator& self) { return self.get().size(); })
      .def(
          "set_deadline",
          [](const SharedCommunicator& self, double seconds) { self.get().set_deadline(deadline_of(seconds)); },
          "seconds"_a, "Longest time that one wait for other ranks may take; 300 seconds unless set.")
      .def("barrier",
           [](const SharedCommunicator& self) {
             const SharedCommunicator alive = self;
             Communicator& communicator = self.get();
             alive.run([&] { communicator.barrier(); });
           })
      .def("refuse", &SharedCommunicator::refuse, "problem"_a,
           "Takes the place of this rank's next layer, which it cannot make: the others' raises ArgumentError with the "
           "problem.")
      .def(
          "abort", [](const SharedCommunicator& self, std::string_view reason) { self.get().abort(reason); },
          "reason"_a, "Ends the ranks' present and later waits with this reason, as far as the transport reaches them.")
      .def("close", &SharedCommunicator::close,
           "Layers that were made with it refuse to go on, and nothing keeps its group.");
  module.def("callback_communicator", &callback_communicator, "rank"_a, "size"_a, "exchange"_a, "all_gather"_a,
             "set_deadline"_a, "owner"_a.none() = nb::none(),
             "Over Python functions: exchange([(peer, memory)...] to send, [...] to receive), all_gather(memory of all "
             "parts, bytes a part), set_deadline(seconds). They return when all has arrived; the memory views are "
             "released then. DeadlineError, KeyboardInterrupt and SystemExit stay what they are, any other exception "
             "becomes a "
             "CommunicationError.");
  module.def(
      "set_default_deadline", [](double seconds) { set_default_deadline(deadline_of(seconds)); }, "seconds"_a,
      "The deadline of communicators that are made from now on; the variable CPNSA_DEADLINE or 300 seconds unless "
      "set.");
  module.def("threads_communicators", &threads_communicators, "ranks"_a,
             "Communicators of ranks that are threads of this process; index = rank.");
}

}  // namespace cpnsa::python
