# install(EXPORT) and the package files; filled in with the package test.
