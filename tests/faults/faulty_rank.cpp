// faulty_rank RANK WHAT WHERE: a rank of a job that plans a layer and runs a forward and a backward. Rank RANK fails:
// WHAT is kill, stop, exit, leave, throw or throw_int; WHERE is plan, forward, backward, or between the last two.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpnsa/attention.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"
#include "tests/support/distributed.hpp"
#include "tests/support/faulty_communicator.hpp"
#include "tests/support/partitions.hpp"
#include "tools/ending.hpp"

namespace {

using namespace cpnsa;

struct Left {};  // thrown by a rank that leaves without a word

void fail(const std::string& what) {
  if (what == "kill") ::kill(::getpid(), SIGKILL);
  if (what == "stop") ::kill(::getpid(), SIGSTOP);
  if (what == "exit") ::_exit(3);
  if (what == "leave") throw Left();
  if (what == "throw") throw std::runtime_error("the disk is full");
  if (what == "throw_int") throw 42;
}

void run(Communicator& control, int faulty, const std::string& what, const std::string& where) {
  test::FaultyCommunicator communicator(control, [&] { fail(what); });
  const auto begin = [&](const char* phase) {
    if (communicator.rank() == faulty && where == phase)
      communicator.fail_in(where == "forward" ? 4 : 2);  // after the agreements
  };
  const auto device = cpu::make_device();
  Config config;
  config.num_q_heads = 4, config.num_kv_heads = 2, config.head_dim_qk = 6, config.head_dim_v = 5;
  config.compress_block = 4, config.compress_stride = 2, config.select_block = 8, config.select_count = 3;
  config.window = 6, config.init_blocks = 1, config.local_blocks = 1;
  config.compressor = Compressor::mean, config.gate = GateKind::values;
  const test::Problem problem = test::make_problem(config, {0, 200}, 1);
  const Partition partition = test::make_partition(test::PartitionKind::contiguous, problem, communicator.size());

  begin("plan");
  Attention attention(config, partition, *device, communicator, test::options_of({.dtype = DType::f32}));
  test::RankTensors tensors(problem, partition, communicator.rank(), {.dtype = DType::f32}, *device);
  test::LayerMemory memory(attention, *device);
  begin("forward");
  attention.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), {});
  if (communicator.rank() == faulty && where == "between") fail(what);
  begin("backward");
  attention.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, memory.workspace(), {});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "faulty_rank: error: found %d arguments, expected RANK WHAT WHERE\n", argc - 1);
    return 2;
  }
  tool::handle_signals();
  tool::Launch launch = tool::launch_of_environment();
  std::unique_ptr<tool::RankGroup> ranks;
  std::string problem;
  try {
    ranks = tool::make_rank_group(launch, {}, 1);
    ranks->run([&](const tool::RankPlace& place) { run(place.control, std::atoi(argv[1]), argv[2], argv[3]); });
  } catch (const Left&) {
    ::pause();  // until the others end the job
    return 1;
  } catch (const std::exception& error) {
    problem = error.what();
  } catch (...) {
    problem = "found an exception that is no std::exception";
  }
  if (!problem.empty()) return tool::end_by_failure("faulty_rank", problem, launch, std::move(ranks));
  std::puts("done");
  return 0;
}
