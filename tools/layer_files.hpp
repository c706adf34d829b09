#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cpnsa/config.hpp"
#include "cpnsa/schema.hpp"
#include "tools/layer_tensors.hpp"
#include "tools/npy.hpp"

namespace cpnsa::tool {

/// A layer's inputs as the files of a folder. Construction reads config.json, cu_seqlens.npy and every header, and
/// checks them against each other; the tensors' elements are read later, by the rank that wants them.
class LayerFiles {
 public:
  struct Input {
    LayerTensor tensor;
    NpyFile file;
  };

  /// ArgumentError naming the file or key, the value found and the value expected. `with_dout`: whether dout.npy is
  /// wanted if it is there.
  LayerFiles(const std::filesystem::path& folder, bool with_dout);

  const Config& config() const { return config_; }
  std::int64_t tokens() const { return cu_seqlens_.back(); }
  const std::vector<std::int64_t>& cu_seqlens() const { return cu_seqlens_; }
  const std::vector<Input>& inputs() const { return inputs_; }
  const std::optional<Input>& dout() const { return dout_; }

  /// Everything that must be equal on all ranks, on one line.
  std::string describe() const;

 private:
  std::filesystem::path file(const std::string& name) const { return folder_ / (name + ".npy"); }
  bool has(const std::string& name) const;
  bool branches_are_separate() const;
  std::int64_t read_tokens() const;
  std::int64_t read_hidden(schema::Extent hidden) const;
  void read_cu_seqlens(std::int64_t tokens);
  void refuse_foreign_parameters() const;
  Input checked(const LayerTensor& tensor) const;

  std::filesystem::path folder_;
  Config config_;
  std::vector<std::int64_t> cu_seqlens_;
  std::vector<Input> inputs_;
  std::optional<Input> dout_;
};

}  // namespace cpnsa::tool
