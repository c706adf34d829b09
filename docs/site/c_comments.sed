# The C header's comments as Doxygen's: before a declaration, and behind one on its line.
s|^( *)/\* ([^-])|\1/** \2|
s|^( *[^ /].*[^ ]) +/\* |\1 /**< |
