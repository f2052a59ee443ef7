'use strict';

require('a-module-that-nobody-installed');
