#pragma once

#include <memory>
#include <string>

#include "cpnsa/attention.hpp"
#include "cpnsa/step_record.hpp"
#include "src/call_lock.hpp"
#include "src/communicator.hpp"
#include "src/saved.hpp"
#include "src/tensor.hpp"

namespace cpnsa::python {

/// A layer with what it stands on. Calls of several threads are made one after the other; a call from within a call of
/// the same thread (a signal handler, a callback) throws ArgumentError.
class SharedAttention {
 public:
  SharedAttention(const Config& config, const Partition& partition, std::shared_ptr<Device> device,
                  const SharedCommunicator& communicator, const AttentionOptions& options);
  ~SharedAttention();

  /// `extras`: a dictionary of what few calls have (given, rotation, interleaved, log_sum_exp), or None.
  void forward(nb::sequence inputs, nb::handle out, nb::handle selected, Saved* saved, nb::handle saved_memory,
               nb::handle workspace, std::uintptr_t stream, nb::handle indices, std::int64_t layer, nb::handle extras);
  void backward(nb::sequence inputs, nb::handle dout, const Saved& saved, nb::handle saved_memory,
                nb::sequence gradients, nb::handle workspace, std::uintptr_t stream, nb::handle indices,
                std::int64_t layer, nb::handle extras);
  void refuse(const std::string& problem);
  Statistics statistics();
  StepRecord record();
  void close();

  std::int64_t rows() const { return rows_; }
  std::size_t workspace_bytes() const { return workspace_bytes_; }
  std::size_t saved_bytes() const { return saved_bytes_; }

 private:
  /// Throws ArgumentError where it, or its communicator, was closed.
  Attention& open() const;
  /// Tells the other ranks what is wrong with this rank's arguments, and throws it.
  [[noreturn]] void refuse_and_throw(const std::string& problem);
  std::int32_t* selection(nb::handle object, const char* name, Owners& owners) const;
  /// Reads what `extras` has of a step's inputs.
  void read_extras(nb::handle extras, AttentionInputs& inputs, Owners& owners) const;

  Config config_;
  std::shared_ptr<Device> device_;
  SharedCommunicator communicator_;
  std::unique_ptr<Attention> attention_;  // another thread, or a tensor's own code, may close it between two looks
  std::int64_t rows_ = 0;
  std::size_t workspace_bytes_ = 0, saved_bytes_ = 0;
  CallLock lock_;
};

}  // namespace cpnsa::python
