#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "backends/backends.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/partition.hpp"
#include "tools/options.hpp"
#include "tools/ranks.hpp"

namespace cpnsa::tool {

/// A rank's device, communicator and precision: ExecutionOptions with every `auto` decided.
class Execution {
 public:
  /// Makes the device; does not communicate. UnsupportedError or ArgumentError naming the flag.
  Execution(const ExecutionOptions& options, const RankPlace& place);

  /// Collective; after every rank has constructed.
  void connect();

  std::string describe() const;  ///< on one line: what every rank must have decided alike

  Device& device() { return *device_; }
  Communicator& communicator() { return *communicator_; }  ///< moves the tensors; after connect()
  TransportKind transport() const { return transport_; }
  DType dtype() const { return dtype_; }
  int gpu_index() const;  ///< of the rank's GPU, if it has one

 private:
  void decide_transport(const ExecutionOptions& options);
  void isolate_nccl_host_id() const;

  RankPlace place_;
  DeviceKind device_kind_;
  TransportKind transport_;
  bool shares_gpu_ = false;  ///< NCCL ranks, more of them on a host than it has GPUs
  DType dtype_;
  std::chrono::milliseconds deadline_;
  std::string options_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> nccl_;
  Communicator* communicator_ = nullptr;
};

}  // namespace cpnsa::tool
