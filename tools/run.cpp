#include "tools/run.hpp"

#include <fmt/format.h>

#include <array>
#include <chrono>
#include <cstring>
#include <optional>

#include "cpnsa/error.hpp"
#include "tools/execution.hpp"
#include "tools/layer_files.hpp"
#include "tools/layer_memory.hpp"
#include "tools/output_folder.hpp"
#include "tools/progress.hpp"
#include "tools/run_report.hpp"

namespace cpnsa::tool {
namespace {

namespace fs = std::filesystem;

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// A result's file, and the device memory that its elements are in.
struct Result {
  std::string file_name;
  NpyArray array;  ///< of the whole sequence
  bool per_token;
  const void* data;           ///< device memory: this rank's rows, or the whole parameter
  std::optional<DType> type;  ///< of the elements there; not given: the array's own
};

class RankRun {
 public:
  RankRun(const RunOptions& options, const RankPlace& place)
      : options_(options), control_(place.control), place_(place), progress_(place.control.rank() == 0) {}

  void run() {
    open();
    prepare_output();
    load();
    compute();
    write();
  }

 private:
  bool selects() const { return files_->config().has_branch(1); }
  bool leads() const { return control_.rank() == 0; }

  void open() {
    agree_on(control_, "open", [&] {
      execution_.emplace(options_.execution, place_);
      files_.emplace(options_.in, options_.execution.backward);
      execution_->device().check_supported(files_->config(), execution_->dtype());
      partition_.emplace(Partition::make(options_.execution.partition, files_->cu_seqlens(),
                                         files_->config().select_block, control_.size()));
    });
    agree(control_, execution_->describe() + " " + files_->describe());
    execution_->connect();
  }

  // Rank 0 makes the files at their full length, so that what cannot be written is known before anything is computed.
  void prepare_output() {
    std::array<char, 4096> own{};
    agree_on(control_, "prepare output", [&] {
      allocate();
      if (!leads()) return;
      output_.emplace(options_.out);
      for (const Result& result : results()) output_->add_array(result.file_name, result.array);
      const std::string folder = output_->unfinished().string();
      if (folder.size() >= own.size())
        throw ArgumentError(
            fmt::format("--out: found a path of {} bytes, expected fewer than {}", folder.size(), own.size()));
      std::memcpy(own.data(), folder.data(), folder.size());
    });
    std::vector<std::array<char, 4096>> all(static_cast<std::size_t>(control_.size()));
    control_.all_gather_host(own.data(), all.data(), own.size());
    unfinished_ = all.front().data();
  }

  void allocate() {
    Device& device = execution_->device();
    device.activate();
    stream_.emplace(device);
    staging_.emplace(device, stream_->get());
    std::vector<LayerTensor> tensors;
    for (const LayerFiles::Input& input : files_->inputs()) tensors.push_back(input.tensor);
    const DType dtype = execution_->dtype();
    memory_.emplace(device, dtype, accumulate_dtype(dtype), partition_->local_tokens(control_.rank()), files_->config(),
                    tensors, files_->dout().has_value());
  }

  void load() {
    progress_.show("reading the inputs");
    agree_on(control_, "load", [&] {
      for (const LayerFiles::Input& input : files_->inputs()) load(input, memory_->input(input.tensor.name));
      if (files_->dout()) load(*files_->dout(), memory_->dout());
    });
  }

  void load(const LayerFiles::Input& input, const DeviceTensor& tensor) {
    const DType dtype = execution_->dtype();
    const auto read = [&](std::int64_t first_element, std::byte* destination, std::int64_t elements) {
      staging_->upload(destination, elements, size_of(dtype), [&](std::int64_t first, std::int64_t count, void* host) {
        input.file.read(first_element + first, count, dtype, host);
      });
    };
    auto* destination = static_cast<std::byte*>(tensor.view().data);
    if (!input.tensor.per_token) return read(0, destination, tensor.elements());
    for (const TokenRange& range : partition_->ranges(control_.rank())) {
      const std::int64_t width = input.tensor.elements_per_row();
      read(range.begin * width, destination, range.size() * width);
      destination += static_cast<std::size_t>(range.size() * width) * size_of(dtype);
    }
  }

  void compute() {
    Device& device = execution_->device();
    const bool backward = files_->dout().has_value();
    AttentionOptions options = options_.execution.attention_options(execution_->dtype());
    options.gradient_dtype = accumulate_dtype(options.dtype);
    options.backward = backward;
    options.sum_parameter_gradients = true;
    options.timing = true;
    for (const LayerFiles::Input& input : files_->inputs()) {
      if (input.tensor.option == "compressed_query") options.compressed_query = true;
      if (input.tensor.option == "sinks") options.sinks = true;
    }
    Attention attention(files_->config(), *partition_, device, execution_->communicator(), options);

    std::optional<DeviceBuffer> workspace, saved_memory;
    SavedForward saved;
    agree_on(control_, "allocate the workspace", [&] {
      workspace.emplace(device, attention.workspace_bytes());
      saved_memory.emplace(device, attention.saved_bytes());
      saved.memory = saved_memory->data();
    });

    report_.tokens = attention.rows();
    progress_.show("forward");
    const Stopwatch forward;
    attention.forward(memory_->inputs(), memory_->out().view(), selects() ? memory_->selected() : nullptr,
                      backward ? &saved : nullptr, workspace->data(), stream_->get());
    finish_step();
    report_.forward_seconds = forward.seconds();
    if (backward) {
      progress_.show("backward");
      const Stopwatch watch;
      attention.backward(memory_->inputs(), memory_->dout().view(), saved, memory_->gradients(), workspace->data(),
                         stream_->get());
      finish_step();
      report_.backward_seconds = watch.seconds();
    }
    agree_on(control_, "statistics", [&] { report_.statistics = attention.statistics(); });
  }

  // A device's failure shows when its stream is waited for, and on the failing rank alone.
  void finish_step() {
    agree_on(control_, "finish the step",
             [&] { execution_->communicator().wait(execution_->device(), stream_->get()); });
  }

  std::vector<Result> results() {
    const Config& config = files_->config();
    const DType dtype = execution_->dtype(), wide = accumulate_dtype(dtype);
    std::vector<Result> list{{"out.npy",
                              {result_type(dtype), {files_->tokens(), config.num_q_heads, config.head_dim_v}},
                              true,
                              memory_->out().view().data,
                              dtype}};
    if (selects())
      list.push_back({"selected.npy",
                      {NpyType::i4, {files_->tokens(), config.num_kv_heads, config.select_count}},
                      true,
                      memory_->selected(),
                      std::nullopt});
    if (files_->dout())
      for (const LayerFiles::Input& input : files_->inputs())
        list.push_back({fmt::format("d{}.npy", input.tensor.name),
                        {result_type(dtype), input.tensor.extents()},
                        input.tensor.per_token,
                        memory_->gradient(input.tensor.name).view().data,
                        wide});
    return list;
  }

  // Every rank its own rows, and rank 0 the parameters' gradients, which all ranks hold alike.
  void write() {
    progress_.show("writing the results");
    agree_on(control_, "write", [&] {
      for (const Result& result : results())
        if (result.per_token || leads()) write(result);
    });
    const RunReport report = gather_report();
    agree_on(control_, "finish the output", [&] {
      if (!leads()) return;
      output_->add_text("stats.json", report.json());
      std::vector<std::string> stale = gradient_files(files_->config(), files_->tokens());
      stale.push_back("selected.npy");  // which a layer without the selected branch does not write
      output_->commit(stale);
    });
    progress_.show("");
    if (leads()) fmt::print("{}", report.table());
  }

  void write(const Result& result) {
    File file = File::open_to_write(unfinished_ / result.file_name);
    const std::size_t element = result.type ? size_of(*result.type) : size_of(result.array.type);
    std::vector<std::byte> widened;
    const auto put = [&](std::int64_t first_element, const std::byte* source, std::int64_t elements) {
      staging_->download(source, elements, element, [&](std::int64_t first, std::int64_t count, const void* host) {
        if (result.type) {
          widened.resize(static_cast<std::size_t>(count) * size_of(result.array.type));
          widen(host, *result.type, widened.data(), count);
        }
        write_elements(file, result.array, first_element + first, count, result.type ? widened.data() : host);
      });
    };
    const auto* source = static_cast<const std::byte*>(result.data);
    const auto elements = static_cast<std::int64_t>(result.array.elements());
    if (!result.per_token) {
      put(0, source, elements);
    } else {
      const std::int64_t width = elements / result.array.shape[0];
      for (const TokenRange& range : partition_->ranges(control_.rank())) {
        put(range.begin * width, source, range.size() * width);
        source += static_cast<std::size_t>(range.size() * width) * element;
      }
    }
    file.close();
  }

  RunReport gather_report() {
    RunReport report;
    report.tokens = files_->tokens();
    report.device = execution_->device().name();
    report.hardware = execution_->device().description();
    report.transport = execution_->communicator().name();
    report.partition = name_of(options_.execution.partition);
    report.dtype = name_of(execution_->dtype());
    report.backward = files_->dout().has_value();
    report.ranks.resize(static_cast<std::size_t>(control_.size()));
    control_.all_gather_host(&report_, report.ranks.data(), sizeof report_);
    return report;
  }

  const RunOptions& options_;
  Communicator& control_;
  RankPlace place_;
  Progress progress_;
  std::optional<Execution> execution_;
  std::optional<LayerFiles> files_;
  std::optional<Partition> partition_;
  std::optional<OutputFolder> output_;  ///< on rank 0
  fs::path unfinished_;                 ///< where the files are until the end
  std::optional<OwnedStream> stream_;
  std::optional<Staging> staging_;
  std::optional<LayerMemory> memory_;
  RankReport report_;
};

}  // namespace

void run(const RunOptions& options, const RankPlace& place) {
  RankRun(options, place).run();
}

}  // namespace cpnsa::tool
