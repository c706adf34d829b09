#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace cpnsa::tool {

/// An open file. Every failure is an ArgumentError that names the path, what the system said and what was expected.
class File {
 public:
  /// For reading; a folder, pipe or device is refused.
  static File open(const std::filesystem::path& path);
  /// For writing a file that exists.
  static File open_to_write(const std::filesystem::path& path);
  /// A new file; an existing one is refused.
  static File create(const std::filesystem::path& path);

  File(File&& other) noexcept;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const;  ///< bytes

  void read_at(void* destination, std::size_t bytes, std::uint64_t offset) const;
  void write_at(const void* source, std::size_t bytes, std::uint64_t offset) const;
  void reserve(std::uint64_t bytes) const;  ///< makes the file so long, and sure of its place on the disk
  void close();                             ///< reports what a delayed write may still find

 private:
  File(const std::filesystem::path& path, int flags, const char* expected);

  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// "path: found No space left on device while writing, expected ..."; `error` is an errno.
[[noreturn]] void throw_file_error(const std::filesystem::path& path, int error, const char* doing,
                                   const char* expected);

/// The whole of a small file; ArgumentError when it is longer than `most` bytes.
std::string read_text(const std::filesystem::path& path, std::size_t most);

}  // namespace cpnsa::tool
