# What the host's compiler cannot read of a kernel, spelt so that it can (tests/emulation/thread_block.hpp).
s/<<</ ->* ::emulation::Grid{/
s/>>>\(/}(/
s/extern __shared__ __align__\((1024|tile_alignment)\) unsigned char ([a-z_]+)\[\];/unsigned char* const \2 = ::emulation::ThreadBlock::shared();/
s/__shared__ (alignas\([0-9]+\))/\1 __shared__/
