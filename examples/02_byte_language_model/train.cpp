#include "train.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <numbers>
#include <numeric>
#include <optional>

#include "adamw.hpp"
#include "all_reduce.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"
#include "curve.hpp"
#include "model/model.hpp"
#include "plot.hpp"
#include "text.hpp"

namespace language_model {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Does what may fail on one rank alone, and goes on only where it succeeded on all of them with the same result.
void together(cpnsa::Communicator& communicator, const std::function<std::string()>& local) {
  std::string result, problem;
  try {
    result = local();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  cpnsa::agree(communicator, result, problem);
}

void create_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error || !std::filesystem::is_directory(path))
    throw cpnsa::ArgumentError(fmt::format("--out: found {} ({}), expected a folder that can be created", path,
                                           error ? error.message() : "no folder"));
}

cpnsa::Partition partition_of(const Options& options, const cpnsa::Config& config, int ranks) {
  const std::int64_t document[] = {0, options.tokens};
  return options.zigzag ? cpnsa::Partition::zigzag(document, config.select_block, ranks)
                        : cpnsa::Partition::contiguous(document, config.select_block, ranks);
}

AttentionKind attention_of(const Options& options) {
  const std::int64_t head_dim = options.width / options.heads;
  AttentionKind kind = options.full_attention
                           ? AttentionKind::full(options.heads, options.kv_heads, head_dim, options.tokens)
                           : AttentionKind::nsa(options.heads, options.kv_heads, head_dim);
  kind.options.exchange = options.exchange;
  kind.options.dtype = options.dtype;
  return kind;
}

// Sums over the ranks that a step reports. Doubles hold whole numbers up to 2^53.
struct StepSums {
  double loss = 0, bytes = 0, blocks = 0;
};

class Trainer {
 public:
  Trainer(const Options& options, const Text& text, cpnsa::Communicator& communicator)
      : options_(options),
        text_(text),
        communicator_(communicator),
        device_(cpnsa::cpu::make_device()),
        kind_(attention_of(options)),
        partition_(partition_of(options, kind_.config, communicator.size())),
        rows_(partition_.global_rows(communicator.rank())),
        parameters_(options.seed),
        model_(parameters_, kind_, options.layers, options.width, partition_, communicator,
               Place{*device_, {}, options.dtype}),
        all_reduce_(communicator),
        optimizer_(parameters_, options.learning_rate, options.steps) {}

  std::size_t parameters() const { return parameters_.values.size(); }

  StepSums step(std::int64_t index) {
    const std::span<const std::uint8_t> sequence = text_.sequence(options_.tokens, options_.seed, index);
    std::vector<std::uint8_t> bytes, targets;
    for (const std::int64_t token : rows_) {
      bytes.push_back(sequence[static_cast<std::size_t>(token)]);
      targets.push_back(sequence[static_cast<std::size_t>(token) + 1]);
    }
    const double share = 1.0 / static_cast<double>(options_.tokens);
    std::fill(parameters_.gradients.begin(), parameters_.gradients.end(), 0.0);
    const double loss = model_.forward_backward(bytes, targets, share);
    all_reduce_.sum(parameters_.gradients);
    optimizer_.step(parameters_);

    const double reduced = static_cast<double>(parameters_.gradients.size() * sizeof(double)) *
                           static_cast<double>(communicator_.size() - 1);
    double sums[] = {loss * share, static_cast<double>(model_.bytes_received()) + reduced,
                     static_cast<double>(model_.blocks_fetched())};
    all_reduce_.sum(sums);
    return {sums[0], sums[1], sums[2]};
  }

 private:
  const Options& options_;
  const Text& text_;
  cpnsa::Communicator& communicator_;
  std::unique_ptr<cpnsa::Device> device_;
  AttentionKind kind_;
  cpnsa::Partition partition_;
  std::vector<std::int64_t> rows_;
  Parameters parameters_;
  Model model_;
  AllReduce all_reduce_;
  AdamW optimizer_;
};

std::string readable(double bytes) {
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  return fmt::format("{:.2f} MB", bytes / 1e6);
}

void print_progress(const Options& options, std::int64_t step, const StepSums& sums, double tokens_per_second) {
  fmt::print(
      "step {:5}/{}  loss {:.4f} nats  {:.3f} bits/byte  {:7.0f} tokens/s  exchanged {} a step  blocks fetched "
      "{:.0f}\n",
      step, options.steps, sums.loss, sums.loss / std::numbers::ln2, tokens_per_second, readable(sums.bytes),
      sums.blocks);
  std::fflush(stdout);
}

double final_loss(const Curve& curve) {
  const std::size_t count = std::min<std::size_t>(20, curve.losses.size());
  return std::accumulate(curve.losses.end() - static_cast<std::ptrdiff_t>(count), curve.losses.end(), 0.0) /
         static_cast<double>(count);
}

void print_summary(const Options& options, const Text& text, const Curve& curve, double seconds) {
  const double entropy = text.unigram_entropy(), loss = final_loss(curve);
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<34}{}\n", name, value); };
  fmt::print("\n");
  row("text", fmt::format("{} ({} bytes)", text.path(), text.size()));
  row("unigram entropy of the text",
      fmt::format("{:.4f} nats  {:.3f} bits/byte", entropy, entropy / std::numbers::ln2));
  row("final loss (mean of the last 20)", fmt::format("{:.4f} nats  {:.3f} bits/byte", loss, loss / std::numbers::ln2));
  row("time", fmt::format("{:.1f} s", seconds));
  row("loss curve", (std::filesystem::path(options.out) / "loss.csv").string());
  row("picture", (std::filesystem::path(options.out) / "loss.svg").string());
}

void write_results(const Options& options, const Text& text, std::vector<Curve> curves) {
  const std::filesystem::path folder(options.out);
  write_file((folder / "loss.csv").string(), to_csv(curves.front()));
  write_file((folder / "loss.svg").string(), plot(curves, text.unigram_entropy()));
}

}  // namespace

void train(const Options& options, cpnsa::Communicator& communicator) {
  const bool first = communicator.rank() == 0;
  std::optional<Text> text;
  std::vector<Curve> curves{{fmt::format("{} attention, {} rank{}", options.full_attention ? "full" : "nsa",
                                         communicator.size(), communicator.size() == 1 ? "" : "s"),
                             {}}};
  together(communicator, [&] {
    text.emplace(options.text, options.tokens);
    if (first) {
      for (const std::string& path : options.compare) curves.push_back(read_curve(path));
      create_folder(options.out);
    }
    return fmt::format("{} text={:016x}", options.describe(), text->fingerprint());
  });

  Trainer trainer(options, *text, communicator);
  if (first) {
    fmt::print("{} attention on {} rank{} ({}), sequences of {} bytes, {} layers of width {}, {} parameters\n",
               options.full_attention ? "full" : "nsa", communicator.size(), communicator.size() == 1 ? "" : "s",
               communicator.name(), options.tokens, options.layers, options.width, trainer.parameters());
    std::fflush(stdout);
  }
  const Clock::time_point begin = Clock::now();
  Clock::time_point last_time = begin;
  std::int64_t last_step = 0;
  const std::int64_t interval = std::max<std::int64_t>(1, options.steps / 20);
  for (std::int64_t step = 1; step <= options.steps; ++step) {
    const StepSums sums = trainer.step(step);
    curves.front().losses.push_back(sums.loss);
    if (first && (step == 1 || step % interval == 0 || step == options.steps)) {
      const double tokens = static_cast<double>((step - last_step) * options.tokens);
      print_progress(options, step, sums, tokens / seconds_since(last_time));
      last_time = Clock::now();
      last_step = step;
    }
  }
  const double seconds = seconds_since(begin);
  together(communicator, [&] {
    if (first) write_results(options, *text, curves);
    return std::string("results");
  });
  if (first) print_summary(options, *text, curves.front(), seconds);
}

}  // namespace language_model
