#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tools/npy.hpp"

namespace cpnsa::tool {

/// A result folder that appears complete or not at all. Files are written to a hidden folder next to it and moved at
/// the end; files that are not committed are removed. An existing folder is exchanged for the new one in one step, and
/// keeps its other files; see replacement.hpp for where that is not possible. One rank owns the OutputFolder, and every
/// rank writes its own rows into the files: the ranges are disjoint and no tensor passes through one rank, but all
/// ranks must see the same file system.
///
/// Errors are ArgumentErrors that name the path.
class OutputFolder {
 public:
  /// Creates the hidden folder, so that a target that cannot be written is reported before the computation.
  explicit OutputFolder(const std::filesystem::path& target);
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  ~OutputFolder();

  /// The folder of the files until commit().
  const std::filesystem::path& unfinished() const { return unfinished_; }

  /// Throws if a file of this name could not be moved to the target: for what is added only when all is computed.
  void check(const std::string& file_name) const;
  /// Creates an array's file: writes its header and reserves its full length on the disk.
  void add_array(const std::string& file_name, const NpyArray& array);
  void add_text(const std::string& file_name, std::string_view text);

  /// Moves the files to the target, and removes files of `stale_names` that an earlier run left and this run did not
  /// write. After an error the target is as it was.
  void commit(const std::vector<std::string>& stale_names);

 private:
  void create_parents();
  void create_unfinished();
  void create_hidden(const std::filesystem::path& stem);
  void add(const std::string& file_name);
  void remove_unfinished() noexcept;

  std::filesystem::path target_;
  bool target_exists_ = false;
  bool replaces_whole_ = false;  ///< whether an existing target is exchanged as a whole
  std::vector<std::filesystem::path> created_parents_;
  std::filesystem::path unfinished_;
  std::vector<std::string> files_;
  bool committed_ = false;
};

/// Writes elements [first, first + count) of the array into its file in `folder`; `data` has the array's type.
void write_elements(const File& file, const NpyArray& array, std::int64_t first, std::int64_t count, const void* data);

}  // namespace cpnsa::tool
