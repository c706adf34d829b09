#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "cpnsa/communicator.hpp"
#include "generator.hpp"
#include "tools/ending.hpp"
#include "tools/ranks.hpp"

namespace {

using namespace language_model;
using cpnsa::tool::DeviceKind;
using cpnsa::tool::TransportKind;

void add_flags(CLI::App& app, GenerateOptions& options) {
  app.add_option("--model", options.model, "model.bin of language_model (default: language_model/model.bin)")
      ->type_name("FILE");
  app.add_option("--prompt", options.prompt, "text to continue (default: \"The licence\")")->type_name("TEXT");
  app.add_option("--tokens", options.tokens, "bytes to append (default: 200)")->check(CLI::Range(1, 1 << 24));
  app.add_option("--chunk", options.chunk, "bytes of the prompt that a step reads (default: 256)")
      ->check(CLI::Range(1, 1 << 20));
  cpnsa::tool::ExecutionOptions& execution = options.execution;
  const std::map<std::string, DeviceKind> devices{{"cpu", DeviceKind::cpu}, {"cuda", DeviceKind::cuda}};
  app.add_option("--device", execution.device, "what computes (default: cpu)")
      ->transform(CLI::CheckedTransformer(devices))
      ->type_name("cpu|cuda");
  app.add_option("--ranks", execution.ranks, "ranks as threads of this process (default: 1)")
      ->check(CLI::Range(1, 256));
  app.add_option("--deadline", execution.deadline, "seconds that a rank waits for the others")
      ->check(CLI::Range(1, 1000000));
}

}  // namespace

int main(int argc, char** argv) {
  cpnsa::tool::handle_signals();
  cpnsa::tool::Launch launch = cpnsa::tool::launch_of_environment();
  GenerateOptions options;
  options.execution.device = DeviceKind::cpu;
  std::string problem;
  CLI::App app(
      "Continues a text with a model that language_model has trained. The cache of keys, values and summaries is\n"
      "sharded over the ranks; the text is the same at every number of ranks.",
      "generate");
  add_flags(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    if (launch.rank == 0) fmt::print("{}", app.help());
    return 0;
  } catch (const CLI::ParseError& error) {
    problem = error.what();
  }
  if (options.execution.device == DeviceKind::cpu) options.execution.dtype = cpnsa::DType::f64;

  std::unique_ptr<cpnsa::tool::RankGroup> ranks;
  try {
    ranks = cpnsa::tool::make_rank_group(launch, options.execution,
                                         problem.empty() ? options.execution.ranks.value_or(1) : 1);
    ranks->run([&](const cpnsa::tool::RankPlace& place) {
      cpnsa::agree(place.control, "generate", problem);
      generate(options, place);
    });
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (!problem.empty()) return cpnsa::tool::end_by_failure("generate", problem, launch, std::move(ranks));
  return 0;
}
