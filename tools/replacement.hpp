#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace cpnsa::tool {

// Results move into a folder that exists, all or none of them. A folder is best exchanged for another in one step of
// the file system, which holds even if the process is killed. Where that is not possible (a mount point, the working
// folder, a folder with folders in it, a parent that cannot be written, a file system that does not exchange), the
// files are moved one by one, and moved back after an error; a process that is killed in between leaves the earlier
// files in a hidden folder.

/// Tells whether replace_folder() may be tried: the folder is this user's, no mount point, and not the working folder
/// or above it.
bool can_be_replaced(const std::filesystem::path& target);

/// Makes the files of `made`, a folder next to `target`, the contents of `target`, with those files of `target` that
/// `made` lacks, except `removed`. Returns false, with nothing changed, where the file system cannot do it.
bool replace_folder(const std::filesystem::path& made, const std::filesystem::path& target,
                    const std::vector<std::string>& removed);

/// Moves `files` from the folder `made` into `target`, removes `removed` there, then removes `made`. After an error
/// `target` is as it was: ArgumentError naming the file.
void replace_files(const std::filesystem::path& made, const std::filesystem::path& target,
                   const std::vector<std::string>& files, const std::vector<std::string>& removed);

/// Renames a file or folder; ArgumentError naming `to`.
void rename_to(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace cpnsa::tool
