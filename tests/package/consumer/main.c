/* A user's program in C that asks the library for what this machine has. */
#include <stdio.h>

#include "cpnsa/cpnsa.h"

int main(void) {
  int major = 0, minor = 0;
  cpnsa_device device = NULL;
  if (cpnsa_version(&major, &minor, NULL) != CPNSA_SUCCESS || major != CPNSA_VERSION_MAJOR ||
      minor != CPNSA_VERSION_MINOR) {
    printf("found library version %d.%d, expected the header's\n", major, minor);
    return 1;
  }
  if (cpnsa_device_create_cpu(&device) != CPNSA_SUCCESS || cpnsa_device_destroy(device) != CPNSA_SUCCESS) {
    puts(cpnsa_last_error());
    return 1;
  }
  puts("consumer in C: ok");
  return 0;
}
