// A rank that throws while a layer is planned, in a step or between steps: the others learn at once which rank, in
// which call of which layer.

#include <gmock/gmock.h>

#include <stdexcept>

#include "cpnsa/error.hpp"
#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/faulty_communicator.hpp"

namespace cpnsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

CPNSA_ATTENTION_SUITE(Faults);

struct Fault {
  std::string where;
  std::string call;  ///< in which the others are then
  bool standard;     ///< whether a std::exception is thrown
};

void run_step(const Problem& problem, DType dtype, FaultyCommunicator& communicator, Device& device, bool fails,
              const Fault& fault) {
  const auto begin = [&](const char* phase) {
    // A first forward begins with three agreements, a backward with one; in planning there are but two.
    if (fails && fault.where == phase) communicator.fail_in(fault.where == "forward" ? 4 : 2);
  };
  const Partition partition = make_partition(PartitionKind::contiguous, problem, communicator.size());
  begin("plan");
  Attention attention(problem.config, partition, device, communicator, options_of({.dtype = dtype}));
  RankTensors tensors(problem, partition, communicator.rank(), {.dtype = dtype}, device);
  LayerMemory memory(attention, device);
  begin("forward");
  attention.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), Stream{});
  if (fails && fault.where == "between") communicator.abort("the disk is full");
  begin("backward");
  attention.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, memory.workspace(), Stream{});
}

TEST_P(Faults, ARankThatThrowsReleasesTheOthersWhichNameIt) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 200}, 1);
  if (!supported(problem.config, dtype)) return;
  const Fault faults[] = {{"plan", "plan of layer 1", true},
                          {"forward", "forward of layer 1, call 1", true},
                          {"forward", "forward of layer 1, call 1", false},
                          {"between", "forward of layer 1, call 1", true},
                          {"backward", "backward of layer 1, call 2", true},
                          {"backward", "backward of layer 1, call 2", false}};
  for (const int ranks : rank_counts(2)) {
    if (ranks > 4) continue;
    for (const Fault& fault : faults)
      on_ranks(ranks, [&](Communicator& inner, Device& own) {
        const bool fails = inner.rank() == 1;
        FaultyCommunicator communicator(inner, [&] {
          if (!fault.standard) throw 42;
          throw std::runtime_error("the disk is full");
        });
        const std::string trace = fault.where + ", rank " + std::to_string(inner.rank());
        try {
          run_step(problem, dtype, communicator, own, fails, fault);
          ADD_FAILURE() << trace << ": found no exception";
        } catch (const CommunicationError& error) {
          EXPECT_TRUE(!fails || fault.where == "between") << trace << ": " << error.what();
          if (transport().tells_other_ranks && !fails) {
            EXPECT_THAT(error.what(), AllOf(HasSubstr("rank 1 gave up"), HasSubstr(fault.call))) << trace;
          }
        } catch (const std::runtime_error& error) {
          EXPECT_TRUE(fails && fault.standard) << trace << ": " << error.what();
          inner.abort(error.what());  // as a program does; the layer has done so already but for its planning
        } catch (int) {
          EXPECT_TRUE(fails && !fault.standard) << trace;
        }
      });
  }
}

}  // namespace
}  // namespace cpnsa::test
