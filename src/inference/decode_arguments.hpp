#pragma once

#include <string>

#include "cpnsa/communicator.hpp"
#include "src/inference/decode_plan.hpp"
#include "src/inference/decode_step.hpp"

namespace cpnsa {

/// Throws ArgumentError for numbers of the batch that the plan does not allow, and for missing arrays.
void validate_batch(const DecodePlan& plan, const Device& device, const DecodeBatch& batch, const void* schedule,
                    std::size_t schedule_bytes);

/// Throws ArgumentError unless the step's tensors fit the plan and the batch that was prepared.
void validate_step(const DecodePlan& plan, const Device& device, const DecodeArguments& given,
                   std::size_t workspace_bytes);

/// Copies the batch's arrays to the host and throws ArgumentError that names the sequence, the part and the page for
/// everything that the device would leave out. Returns a text that must be the same on every rank. Waits for the
/// stream.
std::string read_batch(const DecodePlan& plan, Device& device, Communicator& communicator, const DecodeBatch& batch,
                       Stream stream);

}  // namespace cpnsa
