#include "tools/replacement.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "tools/files.hpp"

namespace cpnsa::tool {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void throw_move_error(const fs::path& path) {
  throw_file_error(path, errno, "moving the results there", "an output folder that can be written");
}

// The other contents of an existing folder, so that the new one has them too: hard links of files, and copies
// of symbolic links. False if something is neither.
bool add_others(const fs::path& target, const fs::path& made, const std::vector<std::string>& removed) {
  std::error_code error;
  for (fs::directory_iterator entry(target, error), end; !error && entry != end; entry.increment(error)) {
    const fs::path name = entry->path().filename(), copy = made / name;
    if (fs::exists(fs::symlink_status(copy, error))) continue;
    if (std::find(removed.begin(), removed.end(), name.string()) != removed.end()) continue;
    error.clear();  // of symlink_status(), which finds no file
    fs::copy(*entry, copy, fs::copy_options::create_hard_links | fs::copy_options::copy_symlinks, error);
    if (error) return false;
  }
  return !error;
}

bool has_folders(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (entry->symlink_status(error).type() == fs::file_type::directory) return true;
  return static_cast<bool>(error);
}

bool exchange(const fs::path& one, const fs::path& other) {
  return ::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0;
}

/// Renames that are undone, the last first, unless finish() is called.
class Moves {
 public:
  Moves() = default;
  Moves(const Moves&) = delete;
  Moves& operator=(const Moves&) = delete;
  ~Moves() {
    for (auto move = done_.rbegin(); move != done_.rend(); ++move) ::rename(move->second.c_str(), move->first.c_str());
  }

  /// An error names `named`.
  void move(const fs::path& from, const fs::path& to, const fs::path& named) {
    done_.reserve(done_.size() + 1);  // so that a move that was made can be noted
    if (::rename(from.c_str(), to.c_str()) != 0) throw_move_error(named);
    done_.emplace_back(from, to);
  }
  void finish() { done_.clear(); }

 private:
  std::vector<std::pair<fs::path, fs::path>> done_;
};

}  // namespace

void rename_to(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_move_error(to);
}

bool can_be_replaced(const fs::path& target) {
  struct stat folder {
  }, parent{};
  if (::stat(target.c_str(), &folder) != 0 || ::stat(target.parent_path().c_str(), &parent) != 0) return false;
  if (folder.st_dev != parent.st_dev || folder.st_uid != ::geteuid()) return false;
  std::error_code error;
  const fs::path relative = fs::current_path(error).lexically_relative(target);
  return !error && (relative.empty() || *relative.begin() == "..");
}

bool replace_folder(const fs::path& made, const fs::path& target, const std::vector<std::string>& removed) {
  struct stat status {};
  // Folders below would be copied; another process may work in one of them.
  if (::stat(target.c_str(), &status) != 0 || has_folders(target)) return false;
  if (!add_others(target, made, removed)) return false;
  if (::chown(made.c_str(), status.st_uid, status.st_gid) != 0) return false;
  if (::chmod(made.c_str(), status.st_mode & 07777) != 0 || !exchange(made, target)) return false;
  std::error_code ignored;  // the results are there
  fs::remove_all(made, ignored);
  return true;
}

void replace_files(const fs::path& made, const fs::path& target, const std::vector<std::string>& files,
                   const std::vector<std::string>& removed) {
  const fs::path earlier = made / ".earlier";
  std::error_code ignored;  // a path that cannot be read is reported when it is moved
  fs::create_directory(earlier, ignored);
  Moves moves;
  const auto set_aside = [&](const std::string& name) {
    const fs::file_type type = fs::symlink_status(target / name, ignored).type();
    if (type != fs::file_type::not_found && type != fs::file_type::directory)
      moves.move(target / name, earlier / name, target / name);
  };
  for (const std::string& name : removed) set_aside(name);
  for (const std::string& file : files) {
    set_aside(file);
    moves.move(made / file, target / file, target / file);
  }
  moves.finish();
  fs::remove_all(made, ignored);
}

}  // namespace cpnsa::tool
