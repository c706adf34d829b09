#pragma once

#include <memory>
#include <string>

#include "cpnsa/decoder.hpp"
#include "src/call_lock.hpp"
#include "src/communicator.hpp"
#include "src/tensor.hpp"

namespace cpnsa::python {

/// A decoder with what it stands on. Calls of several threads are made one after the other, as those of a layer are.
class SharedDecoder {
 public:
  SharedDecoder(const Config& config, std::shared_ptr<Device> device, const SharedCommunicator& communicator,
                const DecoderOptions& options);
  ~SharedDecoder();

  /// `tables` and `pool_pages` have an item for each part of the cache: int32 [num_slots, columns] or None, and the
  /// number of pages.
  void prepare(std::int64_t sequences, std::int64_t tokens, std::int64_t num_slots, nb::handle slots,
               nb::handle lengths, nb::handle cu_q, nb::sequence tables, nb::sequence pool_pages, nb::handle schedule,
               std::uintptr_t stream);
  /// `cache` has the keys of the three branches, their values, and the summaries of keys and values; None is not given.
  /// `layer` is the caller's number of the layer.
  void step(nb::sequence inputs, nb::sequence cache, nb::handle out, nb::handle selected, nb::handle log_sum_exp,
            nb::handle workspace, std::uintptr_t stream, nb::handle indices, std::int64_t layer);
  void refuse(const std::string& problem);
  DecodeStatistics statistics();
  void close();

  const KvCacheLayout& layout() const { return layout_; }
  int rank() const { return rank_; }
  std::size_t workspace_bytes() const { return workspace_bytes_; }
  std::size_t schedule_bytes() const { return schedule_bytes_; }
  int messages_per_step() const { return messages_; }

 private:
  Decoder& open() const;
  template <class Call>
  void run(const std::string& problem, const Call& call);

  Config config_;
  std::shared_ptr<Device> device_;
  SharedCommunicator communicator_;
  KvCacheLayout layout_;
  std::unique_ptr<Decoder> decoder_;
  int rank_ = 0;
  int messages_ = 0;
  std::size_t workspace_bytes_ = 0, schedule_bytes_ = 0;
  std::int64_t tokens_ = 0;  ///< of the step prepared last
  Owners prepared_;          ///< of the batch prepared last, whose arrays the steps read
  CallLock lock_;
};

}  // namespace cpnsa::python
