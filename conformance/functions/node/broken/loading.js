'use strict';

throw new Error('not today');
