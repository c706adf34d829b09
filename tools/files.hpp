#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace cpnsa::tool {

/// An open file. Every failure is an ArgumentError with the path, the system's message and what was expected.
class File {
 public:
  /// Opens a file for reading; a folder, pipe or device is refused.
  static File open(const std::filesystem::path& path);
  /// Opens an existing file for writing.
  static File open_to_write(const std::filesystem::path& path);
  /// Creates a file; an existing one is refused.
  static File create(const std::filesystem::path& path);

  File(File&& other) noexcept;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const;  ///< bytes

  void read_at(void* destination, std::size_t bytes, std::uint64_t offset) const;
  void write_at(const void* source, std::size_t bytes, std::uint64_t offset) const;
  void reserve(std::uint64_t bytes) const;  ///< sets the length of the file and reserves its space on the disk
  void close();                             ///< reports errors of delayed writes

 private:
  File(const std::filesystem::path& path, int flags, const char* expected);

  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// "path: found No space left on device while writing, expected ..."; `error` is an errno.
[[noreturn]] void throw_file_error(const std::filesystem::path& path, int error, const char* doing,
                                   const char* expected);

/// Writes a whole small file, all of it or nothing: to a hidden file next to it, which then replaces what was there.
void replace_text(const std::filesystem::path& path, std::string_view text);

/// Reads a whole small file; ArgumentError if it is longer than `max_bytes`.
std::string read_text(const std::filesystem::path& path, std::size_t max_bytes);

}  // namespace cpnsa::tool
