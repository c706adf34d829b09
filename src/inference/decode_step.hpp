#pragma once

#include "cpnsa/communicator.hpp"
#include "cpnsa/decoder.hpp"
#include "src/inference/decode_plan.hpp"

namespace cpnsa {

/// One layer's call of Decoder::step(), and the schedule that prepare() wrote.
struct DecodeArguments {
  const DecodeBatch& batch;
  const void* schedule;
  const AttentionInputs& inputs;
  const KvCache& cache;
  const DecodeOutputs& outputs;
  void* workspace;
};

/// Enqueues a step of one layer and counts its messages.
void run_decode(const DecodePlan& plan, Device& device, Communicator& communicator, std::size_t scratch_bytes,
                const DecodeArguments& given, DecodeStatistics& statistics, Stream stream);

}  // namespace cpnsa
