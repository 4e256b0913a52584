# The install and use of the library, seen from outside.
