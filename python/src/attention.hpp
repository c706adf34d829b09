#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "cpnsa/attention.hpp"
#include "src/communicator.hpp"
#include "src/saved.hpp"

namespace cpnsa::python {

/// A layer with what it stands on. Calls of several threads are made one after the other.
class SharedAttention {
 public:
  SharedAttention(const Config& config, const Partition& partition, std::shared_ptr<Device> device,
                  const SharedCommunicator& communicator, const AttentionOptions& options);
  ~SharedAttention();

  void forward(nb::sequence inputs, nb::handle out, nb::handle selected, Saved* saved, nb::handle saved_memory,
               nb::handle workspace, std::uintptr_t stream);
  void backward(nb::sequence inputs, nb::handle dout, const Saved& saved, nb::handle saved_memory,
                nb::sequence gradients, nb::handle workspace, std::uintptr_t stream);
  Statistics statistics();
  void close();

  std::int64_t rows() const { return open().rows(); }
  std::size_t workspace_bytes() const { return open().workspace_bytes(); }
  std::size_t saved_bytes() const { return open().saved_bytes(); }

 private:
  /// Throws ArgumentError where it, or its communicator, was closed.
  Attention& open() const;
  /// Tells the other ranks what is wrong with this rank's arguments, and throws it.
  [[noreturn]] void refuse(const std::string& problem);
  std::int32_t* selection(nb::handle object) const;

  Config config_;
  std::shared_ptr<Device> device_;
  SharedCommunicator communicator_;
  std::unique_ptr<Attention> attention_;
  std::mutex mutex_;
};

}  // namespace cpnsa::python
