#include "c/boundary.hpp"

static_assert(CPNSA_VERSION_MAJOR == CPNSA_PROJECT_MAJOR && CPNSA_VERSION_MINOR == CPNSA_PROJECT_MINOR &&
                  CPNSA_VERSION_PATCH == CPNSA_PROJECT_PATCH,
              "cpnsa.h and CMakeLists.txt are of different versions");

cpnsa_status cpnsa_version(int* major, int* minor, int* patch) {
  if (major) *major = CPNSA_VERSION_MAJOR;
  if (minor) *minor = CPNSA_VERSION_MINOR;
  if (patch) *patch = CPNSA_VERSION_PATCH;
  return CPNSA_SUCCESS;
}
