#include "tools/decode.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <vector>

#include "cpnsa/decoder.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/page_allocator.hpp"
#include "tools/execution.hpp"
#include "tools/layer_files.hpp"
#include "tools/layer_memory.hpp"
#include "tools/output_folder.hpp"
#include "tools/progress.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

/// One rank's numbers for stats.json; gathered as bytes.
struct RankNumbers {
  DecodeStatistics statistics;
  PageCounts pages;  ///< in the pools
  std::int64_t cache_bytes = 0;
  std::int64_t workspace_bytes = 0;
};
static_assert(std::is_trivially_copyable_v<RankNumbers>);

/// Int32 numbers in device memory, of a fixed number of items.
class DeviceNumbers {
 public:
  DeviceNumbers(Device& device, std::int64_t items)
      : memory_(device, std::max<std::size_t>(1, static_cast<std::size_t>(items)) * sizeof(std::int32_t)) {}

  const std::int32_t* data() const { return static_cast<const std::int32_t*>(memory_.data()); }
  void write(const std::vector<std::int32_t>& numbers, Device& device, Stream stream) {
    device.copy(memory_.data(), numbers.data(), numbers.size() * sizeof(std::int32_t), stream);
  }

 private:
  DeviceBuffer memory_;
};

/// One rank's cache, and the memory of its steps.
class Server {
 public:
  Server(const LayerFiles& files, const DecodeOptions& options, const DecoderOptions& sizes, LayerMemory& layer,
         Device& device, Communicator& communicator, Stream stream)
      : files_(files),
        layer_(layer),
        device_(device),
        communicator_(communicator),
        stream_(stream),
        decoder_(files.config(), sizes, device, communicator),
        counts_(count_pages()),
        pages_(decoder_.layout(), communicator.rank(), counts_, sequences(), sizes.max_length, options.feed.seed),
        lengths_(static_cast<std::size_t>(sequences())),
        step_(device, sizes.cache.dtype, sizes.cache.dtype, sizes.max_tokens, files.config(), tensors(files), false) {}

  /// Allocates what is large.
  void allocate() {
    const KvCacheLayout& layout = decoder_.layout();
    cache_memory_ = DeviceBuffer(device_, layout.bytes(counts_));
    workspace_ = DeviceBuffer(device_, decoder_.workspace_bytes());
    schedule_ = DeviceBuffer(device_, std::max<std::size_t>(1, decoder_.schedule_bytes()));
    cache_ = layout.view(cache_memory_.data(), counts_);
    slots_.emplace(device_, sequences());
    lengths_on_device_.emplace(device_, sequences());
    cu_q_.emplace(device_, sequences() + 1);
    for (const CachePart part : enum_values<CachePart>)
      tables_.emplace_back(device_, sequences() * pages_.columns(part));
  }

  void step(const std::vector<DecodePiece>& pieces) {
    for (const DecodePiece& piece : pieces) start(piece);
    const DecodeBatch batch = upload(pieces);
    AttentionInputs inputs = layer_.inputs();
    schema::for_each_token_tensor(
        [&](const schema::Tensor&, TensorView& view, const TensorView& of_step) {
          view = of_step;
          view.shape[0] = batch.tokens;
        },
        inputs, step_.inputs());
    move_rows(pieces, true);
    DecodeOutputs outputs;
    outputs.out = step_.out().view();
    outputs.out.shape[0] = batch.tokens;
    outputs.selected = step_.selected();
    decoder_.prepare(batch, schedule_.data(), stream_);
    decoder_.step(inputs, cache_, outputs, workspace_.data(), stream_);
    move_rows(pieces, false);
    communicator_.wait(device_, stream_);
    for (const DecodePiece& piece : pieces) {
      std::int32_t& length = lengths_[static_cast<std::size_t>(piece.sequence)];
      length = static_cast<std::int32_t>(piece.begin + piece.count);
    }
  }

  RankNumbers numbers() const {
    return {decoder_.statistics(), counts_, static_cast<std::int64_t>(cache_memory_.size()),
            static_cast<std::int64_t>(workspace_.size())};
  }

 private:
  static std::vector<LayerTensor> tensors(const LayerFiles& files) {
    std::vector<LayerTensor> list;
    for (const LayerFiles::Input& input : files.inputs())
      if (input.tensor.per_token) list.push_back(input.tensor);
    return list;
  }

  std::int64_t sequences() const { return static_cast<std::int64_t>(files_.cu_seqlens().size()) - 1; }
  std::int64_t first_row(std::int64_t sequence) const {
    return files_.cu_seqlens()[static_cast<std::size_t>(sequence)];
  }

  PageCounts count_pages() const {
    PageCounts sum;
    for (std::int64_t i = 0; i < sequences(); ++i) {
      const PageCounts one =
          PageAllocator::pages_for(decoder_.layout(), communicator_.rank(), first_row(i + 1) - first_row(i));
      sum.cmp += one.cmp, sum.slc += one.slc, sum.win += one.win, sum.summaries += one.summaries;
    }
    return sum;
  }

  /// Cuts the piece's sequence back to its beginning, and gives it the pages that it needs.
  void start(const DecodePiece& piece) {
    std::int32_t& length = lengths_[static_cast<std::size_t>(piece.sequence)];
    if (length > piece.begin)
      copy_pages(decoder_.layout(), cache_, pages_.cut(piece.sequence, piece.begin), device_, stream_);
    length = static_cast<std::int32_t>(piece.begin);
    pages_.reserve(piece.sequence, piece.begin + piece.count);
  }

  DecodeBatch upload(const std::vector<DecodePiece>& pieces) {
    batch_slots_.clear();
    batch_cu_q_.assign(1, 0);
    for (const DecodePiece& piece : pieces) {
      batch_slots_.push_back(static_cast<std::int32_t>(piece.sequence));
      batch_cu_q_.push_back(batch_cu_q_.back() + static_cast<std::int32_t>(piece.count));
    }
    slots_->write(batch_slots_, device_, stream_);
    cu_q_->write(batch_cu_q_, device_, stream_);
    lengths_on_device_->write(lengths_, device_, stream_);
    const auto table = [&](CachePart part) {
      DeviceNumbers& on_device = tables_[static_cast<std::size_t>(part)];
      on_device.write(pages_.table(part), device_, stream_);
      return pages_.on_device(part, on_device.data());
    };
    DecodeBatch batch;
    batch.sequences = static_cast<std::int64_t>(pieces.size());
    batch.tokens = batch_cu_q_.back();
    batch.num_slots = sequences();
    batch.slots = slots_->data();
    batch.lengths = lengths_on_device_->data();
    batch.cu_q = cu_q_->data();
    batch.cmp = table(CachePart::cmp);
    batch.slc = table(CachePart::slc);
    batch.win = table(CachePart::win);
    batch.summaries = table(CachePart::summaries);
    return batch;
  }

  /// Copies the pieces' rows from the layer's inputs to the step's, or from the step's results to the layer's.
  void move_rows(const std::vector<DecodePiece>& pieces, bool inputs) {
    const Config& config = files_.config();
    const auto selected_bytes =
        static_cast<std::size_t>(config.num_kv_heads * config.select_count) * sizeof(std::int32_t);
    std::int64_t row = 0;
    for (const DecodePiece& piece : pieces) {
      const std::int64_t packed = first_row(piece.sequence) + piece.begin;
      const auto copy = [&](void* to, std::int64_t to_row, const void* from, std::int64_t from_row, std::size_t bytes) {
        device_.copy(static_cast<std::byte*>(to) + static_cast<std::size_t>(to_row) * bytes,
                     static_cast<const std::byte*>(from) + static_cast<std::size_t>(from_row) * bytes,
                     static_cast<std::size_t>(piece.count) * bytes, stream_);
      };
      if (inputs) {
        for (const LayerFiles::Input& input : files_.inputs()) {
          if (!input.tensor.per_token) continue;
          const DeviceTensor &from = layer_.input(input.tensor.name), &to = step_.input(input.tensor.name);
          copy(to.view().data, row, from.view().data, packed, from.row_bytes());
        }
      } else {
        copy(layer_.out().view().data, packed, step_.out().view().data, row, layer_.out().row_bytes());
        copy(layer_.selected(), packed, step_.selected(), row, selected_bytes);
      }
      row += piece.count;
    }
  }

  const LayerFiles& files_;
  LayerMemory& layer_;
  Device& device_;
  Communicator& communicator_;
  Stream stream_;
  Decoder decoder_;
  PageCounts counts_;
  PageAllocator pages_;
  std::vector<std::int32_t> lengths_;  ///< of the sequences, which are the slots
  std::vector<std::int32_t> batch_slots_, batch_cu_q_;
  LayerMemory step_;
  DeviceBuffer cache_memory_, workspace_, schedule_;
  KvCache cache_;
  std::optional<DeviceNumbers> slots_, lengths_on_device_, cu_q_;
  std::vector<DeviceNumbers> tables_;
};

class RankDecode {
 public:
  RankDecode(const DecodeOptions& options, const RankPlace& place)
      : options_(options), control_(place.control), place_(place), progress_(place.control.rank() == 0) {}

  void run() {
    open();
    prepare_output();
    load();
    compute();
    write();
  }

 private:
  bool leads() const { return control_.rank() == 0; }

  void open() {
    agree_on(control_, "open", [&] {
      execution_.emplace(options_.execution, place_);
      files_.emplace(options_.in, false);
      const Config& config = files_->config();
      execution_->device().check_supported(config, execution_->dtype());
      if (options_.page % config.select_block != 0)
        throw ArgumentError(fmt::format("--page: found {}, expected a multiple of select_block {}", options_.page,
                                        config.select_block));
      sizes_.cache.dtype = execution_->dtype();
      sizes_.cache.page = options_.page;
      sizes_.cache.shared_branches = !has_own_keys();
      sizes_.cache.replicate_summaries = options_.replicate_summaries;
      execution_->device().check_decode_supported(config, execution_->dtype(), layout().page());
      steps_ = decode_steps(files_->cu_seqlens(), options_.feed);
      sizes_.max_sequences = static_cast<std::int64_t>(files_->cu_seqlens().size()) - 1;
      for (const auto& pieces : steps_) {
        std::int64_t tokens = 0;
        for (const DecodePiece& piece : pieces) {
          tokens += piece.count;
          sizes_.max_length = std::max(sizes_.max_length, piece.begin + piece.count);
        }
        sizes_.max_tokens = std::max(sizes_.max_tokens, tokens);
      }
    });
    agree(control_, execution_->describe() + " " + options_.describe() + " " + files_->describe());
    execution_->connect();
  }

  bool has_own_keys() const {
    return std::any_of(files_->inputs().begin(), files_->inputs().end(),
                       [](const LayerFiles::Input& input) { return input.tensor.name == "k_cmp"; });
  }

  // The files are made at their full length, so that what cannot be written is known before anything is computed.
  void prepare_output() {
    agree_on(control_, "prepare output", [&] {
      Device& device = execution_->device();
      device.activate();
      stream_.emplace(device);
      staging_.emplace(device, stream_->get());
      std::vector<LayerTensor> tensors;
      for (const LayerFiles::Input& input : files_->inputs()) tensors.push_back(input.tensor);
      const DType dtype = execution_->dtype();
      layer_.emplace(device, dtype, dtype, files_->tokens(), files_->config(), tensors, false);
      if (!leads()) return;
      output_.emplace(options_.out);
      output_->add_array("out.npy", out_array());
      output_->add_array("selected.npy", selected_array());
      output_->check("stats.json");
    });
  }

  NpyArray out_array() const {
    const Config& config = files_->config();
    return {result_type(execution_->dtype()), {files_->tokens(), config.num_q_heads, config.head_dim_v}};
  }
  NpyArray selected_array() const {
    const Config& config = files_->config();
    return {NpyType::i4, {files_->tokens(), config.num_kv_heads, config.select_count}};
  }

  // Every rank reads all tokens: a step's queries are known to all of them.
  void load() {
    progress_.show("reading the inputs");
    agree_on(control_, "load", [&] {
      const DType dtype = execution_->dtype();
      for (const LayerFiles::Input& input : files_->inputs()) {
        const DeviceTensor& tensor = layer_->input(input.tensor.name);
        staging_->upload(
            tensor.view().data, tensor.elements(), size_of(dtype),
            [&](std::int64_t first, std::int64_t count, void* host) { input.file.read(first, count, dtype, host); });
      }
    });
  }

  void compute() {
    Server server(*files_, options_, sizes_, *layer_, execution_->device(), execution_->communicator(), stream_->get());
    agree_on(control_, "allocate the cache", [&] { server.allocate(); });
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      if (i % 64 == 0) progress_.show(fmt::format("step {} of {}", i + 1, steps_.size()));
      server.step(steps_[i]);
    }
    agree_on(control_, "finish the steps", [] {});
    numbers_ = server.numbers();
  }

  void write() {
    progress_.show("writing the results");
    std::vector<RankNumbers> all(static_cast<std::size_t>(control_.size()));
    control_.all_gather_host(&numbers_, all.data(), sizeof numbers_);
    agree_on(control_, "write", [&] {
      if (!leads()) return;
      write_out();
      write_selected();
      output_->add_text("stats.json", stats(all));
      output_->commit(gradient_files(files_->config(), files_->tokens()));
    });
    progress_.show("");
    if (leads()) print(all);
  }

  void write_out() {
    File file = File::open_to_write(output_->unfinished() / "out.npy");
    const NpyArray array = out_array();
    const DType dtype = execution_->dtype();
    std::vector<std::byte> widened;
    staging_->download(layer_->out().view().data, layer_->out().elements(), size_of(dtype),
                       [&](std::int64_t first, std::int64_t count, const void* host) {
                         widened.resize(static_cast<std::size_t>(count) * size_of(array.type));
                         widen(host, dtype, widened.data(), count);
                         write_elements(file, array, first, count, widened.data());
                       });
    file.close();
  }

  void write_selected() {
    File file = File::open_to_write(output_->unfinished() / "selected.npy");
    const NpyArray array = selected_array();
    staging_->download(layer_->selected(), static_cast<std::int64_t>(array.elements()), size_of(array.type),
                       [&](std::int64_t first, std::int64_t count, const void* host) {
                         write_elements(file, array, first, count, host);
                       });
    file.close();
  }

  std::string stats(const std::vector<RankNumbers>& ranks) {
    const auto column = [&](const auto& value) {
      ordered_json entries = ordered_json::array();
      for (const RankNumbers& rank : ranks) entries.push_back(value(rank));
      return entries;
    };
    std::int64_t pages = 0;
    for (const RankNumbers& rank : ranks) pages += rank.pages.slc;
    ordered_json stats;
    stats["ranks"] = ranks.size();
    stats["tokens"] = files_->tokens();
    stats["sequences"] = sizes_.max_sequences;
    stats["steps"] = steps_.size();
    stats["device"] = execution_->device().name();
    stats["transport"] = execution_->communicator().name();
    stats["dtype"] = name_of(execution_->dtype());
    stats["hardware"] = execution_->device().description();
    stats["page"] = layout().page();
    stats["summary_page"] = layout().summary_page();
    stats["replicated_summaries"] = layout().options().replicate_summaries;
    stats["pages"] = pages;
    ordered_json& of_parts = stats["pages_of"] = ordered_json::object();
    of_parts["cmp"] = column([](const RankNumbers& rank) { return rank.pages.cmp; });
    of_parts["slc"] = column([](const RankNumbers& rank) { return rank.pages.slc; });
    of_parts["win"] = column([](const RankNumbers& rank) { return rank.pages.win; });
    of_parts["summaries"] = column([](const RankNumbers& rank) { return rank.pages.summaries; });
    stats["cache_bytes"] = column([](const RankNumbers& rank) { return rank.cache_bytes; });
    stats["workspace_bytes"] = column([](const RankNumbers& rank) { return rank.workspace_bytes; });
    stats["messages"] = column([](const RankNumbers& rank) { return rank.statistics.messages; });
    ordered_json& received = stats["bytes_received"] = ordered_json::object();
    for (const DecodeTraffic traffic : enum_values<DecodeTraffic>)
      received[std::string(name_of(traffic))] = column(
          [&](const RankNumbers& rank) { return rank.statistics.bytes_received[static_cast<std::size_t>(traffic)]; });
    return stats.dump(2) + "\n";
  }

  void print(const std::vector<RankNumbers>& ranks) {
    fmt::print("# {} tokens of {} sequences in {} steps, {} rank{} ({}), {} ({}), {}, pages of {} tokens\n",
               files_->tokens(), sizes_.max_sequences, steps_.size(), ranks.size(), ranks.size() == 1 ? "" : "s",
               execution_->communicator().name(), execution_->device().name(), execution_->device().description(),
               name_of(execution_->dtype()), layout().page());
    fmt::print("# {:>4} {:>10} {:>14} {:>10} {:>14}\n", "rank", "pages", "cache MiB", "messages", "received MiB");
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      const auto& bytes = ranks[r].statistics.bytes_received;
      const auto mebibytes = [](std::int64_t count) { return static_cast<double>(count) / (1 << 20); };
      fmt::print("  {:>4} {:>10} {:>14.2f} {:>10} {:>14.2f}\n", r, ranks[r].pages.slc, mebibytes(ranks[r].cache_bytes),
                 ranks[r].statistics.messages, mebibytes(std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0})));
    }
  }

  KvCacheLayout layout() const { return {files_->config(), sizes_.cache, control_.size()}; }

  const DecodeOptions& options_;
  Communicator& control_;
  RankPlace place_;
  Progress progress_;
  DecoderOptions sizes_;
  std::vector<std::vector<DecodePiece>> steps_;
  std::optional<Execution> execution_;
  std::optional<LayerFiles> files_;
  std::optional<OutputFolder> output_;  ///< on rank 0
  std::optional<OwnedStream> stream_;
  std::optional<Staging> staging_;
  std::optional<LayerMemory> layer_;
  RankNumbers numbers_;
};

}  // namespace

void decode(const DecodeOptions& options, const RankPlace& place) {
  RankDecode(options, place).run();
}

}  // namespace cpnsa::tool
